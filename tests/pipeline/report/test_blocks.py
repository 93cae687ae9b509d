"""Tables inside README.md and docs/results.md: what they show is what is published, and the committed ones are up to date."""

import re
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from pipeline.artifacts import sha256, write_signed
from pipeline.report.blocks import BLOCK, DOCUMENTS, filled, parse_columns, ranks_of, write_blocks
from pipeline.report.titles import title

ROOT = Path(__file__).parents[3]
HEADER = "dataset,backbone,adapter,encoder,dim,seed,variant,loss,fingerprint,commit,torch,over,NDCG@20,best_epoch\n"
DOCUMENT = """# Results

<!-- results:
{columns}
-->
of yesterday
<!-- end of results -->

The end.
"""


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published folder: two seeds of Base, one of SpecTran, and a tuned run that no block shows."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs/results/shop"
    folder.mkdir(parents=True)
    lines = [
        "toys,sasrec,base,minilm,8,0,,info_nce,f0,c0,2.13,seeds,0.05,10",
        "toys,sasrec,base,minilm,8,1,,info_nce,f0,c0,2.13,seeds,0.07,13",
        "toys,sasrec,spectran,minilm,8,0,,info_nce,f0,c0,2.13,seeds,0.0612,4",
        "toys,sasrec,base,minilm,8,0,,info_nce,f0,c0,2.13,tuned,0.9,1",
    ]
    (folder / "runs.csv").write_text(HEADER + "\n".join(lines) + "\n")
    sign(folder)
    return folder


def sign(folder: Path) -> None:
    files = {name: sha256(folder / name) for name in ("runs.csv", "report.md") if (folder / name).is_file()}
    write_signed(folder / "sidecar.json", {"files": files})


@pytest.mark.usefixtures("publish")
def test_a_block_shows_means_and_deviations_of_the_published_runs() -> None:
    """The sample deviation of 0.05 and 0.07 is 0.01 sqrt 2; epochs are whole numbers and the best figure is bold."""
    text = filled(DOCUMENT.format(columns='shop NDCG@20 "NDCG"\nshop/toys best_epoch "Epoch"'), "README.md")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| | NDCG | Epoch |",
        "|---|---:|---:|",
        "| Base (ID only) | 0.0600 ± 0.0141 | 12 |",
        "| SpecTran | **0.0612** | 4 |",
    ]
    assert text.startswith("# Results\n")
    assert text.endswith("\nThe end.\n")
    assert "yesterday" not in text
    assert filled(text, "README.md") == text


@pytest.mark.usefixtures("publish")
def test_the_papers_figures_stand_beside_ours() -> None:
    """0.0612 is printed in the paper's Table 2: Office, SASRec, SpecTran, NDCG@20."""
    text = filled(DOCUMENT.format(columns='shop NDCG@20 "Ours"\npaper/office/sasrec NDCG@20 "Paper"'), "README.md")
    assert "| SpecTran | **0.0612** | **0.0612** |" in text
    assert "| Base (ID only) | 0.0600 ± 0.0141 | 0.0423 |" in text


@pytest.mark.usefixtures("publish")
def test_items_held_out_of_training_have_rows_without_training_first() -> None:
    """Of a method's two rows, that with IDs of zero counts, as in serving."""
    Path("docs/results/cold").mkdir()
    rows = 'method,ids,NDCG@20\npopularity,"",0.0\nnearest text,,0.03\nspectran,mean,0.05\nspectran,zero,0.09\nllminit,,0.02\n'
    Path("docs/results/cold/toys.csv").write_text(rows)
    text = filled(DOCUMENT.format(columns='cold/toys NDCG@20 "New"'), "README.md")
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == [
        "| Popularity | 0.0000 |",
        "| Nearest text | 0.0300 |",
        "| LLMInit | 0.0200 |",
        "| SpecTran | **0.0900** |",
    ]


def test_users_of_one_group_have_a_column(publish: Path) -> None:
    """Adapters differ on rare items more than on all. Base has two seeds, SpecTran one."""
    head, rows = "dataset,backbone,adapter,by,group,metric,users,mean,std\n", []
    for adapter, group, mean in (
        ("base", "head", 0.1),
        ("base", "tail", 0.01),
        ("spectran", "head", 0.11),
        ("spectran", "tail", 0.05),
    ):
        rows += [
            f"toys,sasrec,{adapter},popularity,{group},{metric},9,{mean + add},{0.002 if adapter == 'base' else ''}\n"
            for metric, add in (("NDCG@20", 0), ("HR@20", 0.2))
        ]
    (publish / "groups.csv").write_text(head + "".join(rows))
    write_signed(publish / "sidecar.json", {"files": {name: sha256(publish / name) for name in ("runs.csv", "groups.csv")}})
    text = filled(DOCUMENT.format(columns='groups/shop/tail NDCG@20 "Tail"\nshop NDCG@20 "All"'), "README.md")
    assert "| Base (ID only) | 0.0100 ± 0.0020 | 0.0600 ± 0.0141 |" in text
    assert "| SpecTran | **0.0500** | **0.0612** |" in text
    with pytest.raises(UserError, match="docs/results/groups: column 'Some': no runs of shop/warm"):
        filled(DOCUMENT.format(columns='groups/shop/warm NDCG@20 "Some"'), "README.md")


def test_variants_and_tuned_adapters_have_columns(publish: Path) -> None:
    with (publish / "runs.csv").open("a") as file:
        file.write("toys,sasrec,spectran,minilm,8,0,without_encoding,info_nce,f1,c0,2.13,variants,0.055,4\n")
    sign(publish)
    text = filled(DOCUMENT.format(columns='variants/shop NDCG@20 "Variants"'), "README.md")
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == [
        "| Base (ID only) | 0.0600 ± 0.0141 |",
        "| SpecTran | **0.0612** |",
        "| without D | 0.0550 |",
    ]
    assert "| Base (ID only) | **0.9000** |" in filled(DOCUMENT.format(columns='tuned/shop/info_nce NDCG@20 "N"'), "README.md")
    with pytest.raises(UserError, match="docs/results/tuned: column 'N': no runs of shop/cross_entropy"):
        filled(DOCUMENT.format(columns='tuned/shop/cross_entropy NDCG@20 "N"'), "README.md")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ('groups/none/tail NDCG@20 "N"', "none/groups.csv is missing; `python -m stages.publish none` writes it"),
        ('shop NDCG@20 "N"\nnonsense', "'nonsense' is no column"),
        ('shop NDCG@20 "N"\nshop HR@20 "N"', "the heading 'N' is taken"),
        ('shop NDCG@20 "Mean rank"', "the heading 'Mean rank' is taken"),
        ('shop HR@5 "H"', "there is no HR@5, only dataset, "),
        ('shop/office NDCG@20 "N"', "no runs of office"),
        ('../shop NDCG@20 "N"', "folder"),
        ('cold/shop NDCG@20 "N"', "cold/shop.csv is missing; it is a copy of metrics/cold/shop/cold.csv"),
    ],
)
@pytest.mark.usefixtures("publish")
def test_a_block_that_cannot_be_filled_is_one_line(columns: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        filled(DOCUMENT.format(columns=columns), "README.md")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("office,sasrec,base,minilm,8,2,,info_nce", "dataset: office, toys"),
        ("toys,sasrec,base,minilm,8,2,,cross_entropy", "loss: cross_entropy, info_nce"),
    ],
)
def test_runs_of_several_kinds_are_never_averaged(publish: Path, run: str, says: str) -> None:
    with (publish / "runs.csv").open("a") as file:
        file.write(f"{run},f0,c0,2.13,seeds,0.5,1\n")
    sign(publish)
    with pytest.raises(UserError, match=f"mixes several values of {says}"):
        filled(DOCUMENT.format(columns='shop NDCG@20 "N"'), "README.md")


@pytest.mark.usefixtures("publish")
def test_a_block_without_an_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"README.md: a block of results does not end"):
        filled('<!-- results:\nshop NDCG@20 "N"\n-->\n| a table |\n', "README.md")


def test_the_committed_tables_are_those_of_the_published_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    for path, text in texts.items():
        assert "<!-- results:\n" in text, f"{path} shows results"
        assert filled(text, str(path)) == text, f"{path} is stale; `python -m stages.results` writes it"
        for _, _, picture, columns, _, _ in BLOCK.findall(text):
            if picture.strip().endswith(".svg"):
                ranks = ranks_of(parse_columns(columns, str(path)), str(path)).ranks.iter_rows()
                shown = re.findall(
                    r"<title>(.+): mean rank (.+)</title>", (path.parent / picture.strip()).read_text(encoding="utf-8")
                )
                assert shown == [(title(name), f"{rank:.2f}") for name, rank in ranks], "`python -m stages.results` draws it"


@pytest.mark.usefixtures("publish")
def test_only_files_with_stale_tables_are_written() -> None:
    Path("README.md").write_text(DOCUMENT.format(columns='shop NDCG@20 "NDCG"'))
    for path in DOCUMENTS[1:]:
        path.write_text("no table\n")
    assert write_blocks() == [Path("README.md")]
    assert write_blocks() == []


def test_mean_ranks_stand_beside_the_figures(publish: Path) -> None:
    """Three adapters, ranked 1, 2, 3 in one column and 2, 1, 3 in the other; with k = 3 and 2 columns, q = 2.344 x 1 (Demsar)."""
    runs = pl.read_csv(publish / "runs.csv").filter(pl.col("seed") == 0, pl.col("over") == "seeds").head(1)
    scores = [("base", 0.1, 0.1), ("llminit", 0.2, 0.4), ("spectran", 0.3, 0.3)]
    every = [
        runs.with_columns(pl.lit(adapter).alias("adapter"), pl.lit(a).alias("NDCG@20"), pl.lit(b).alias("HR@20"))
        for adapter, a, b in scores
    ]
    pl.concat(every).write_csv(publish / "runs.csv")
    sign(publish)
    block = '<!-- ranks:\nshop NDCG@20 "A"\nshop HR@20 "B"\n-->\n<!-- end of ranks -->\n'
    text = filled(block, "README.md")
    rows = [line.replace("*", "").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [(row[0], row[-1]) for row in rows[1:]] == [
        ("| Base (ID only)", "3.00 |"),
        ("| LLMInit", "1.50 |"),
        ("| SpecTran", "1.50 |"),
    ]
    assert (
        "LLMInit and SpecTran have the best mean rank, 1.50 over 2 pairs; within the critical difference of 2.34 from it: Base"
        in (" ".join(text.split()))
    )
    assert filled(text, "README.md") == text
    for path in DOCUMENTS:
        path.write_text("no table\n")
    Path("docs/figures").mkdir()
    Path("docs/results.md").write_text(block.replace("ranks:", "ranks: figures/a.svg", 1))
    assert write_blocks() == [Path("docs/figures/a.svg"), Path("docs/results.md")]
    assert "(figures/a.svg)" in Path("docs/results.md").read_text()
    assert "SpecTran: mean rank 1.50" in Path("docs/figures/a.svg").read_text()
    assert write_blocks() == []
    for elsewhere in ("../a.svg", "/figures/a.svg", "figures/../a.svg", "figures/a.png"):
        with pytest.raises(UserError, match="is not what a block of ranks starts with"):
            filled(block.replace("ranks:", f"ranks: {elsewhere}", 1), "README.md")
    with pytest.raises(UserError, match=r"README\.md: mean ranks need two columns and three adapters"):
        filled('<!-- ranks:\nshop NDCG@20 "A"\n-->\n<!-- end of ranks -->\n', "README.md")


@pytest.mark.parametrize("about", ["", "*Data: Shop · Dim: 8*\n\n"])
def test_a_verdict_is_that_of_the_published_report(publish: Path, about: str) -> None:
    (publish / "report.md").write_text(f"# Which adapter?\n\n{about}SpecTran is best ({'very ' * 30}sure).\n\n## Leaderboard\n")
    with pytest.raises(UserError, match=r"report.md is not a file of this artifact"):
        filled("<!-- verdict: shop -->\n<!-- end of verdict -->\n", "README.md")
    sign(publish)
    text = filled("A\n<!-- verdict: shop -->\nold\n<!-- end of verdict -->\nB\n", "README.md")
    lines = text.splitlines()
    assert (lines[0], lines[-1]) == ("A", "B")
    assert " ".join(lines[3:-3]) == f"SpecTran is best ({'very ' * 30}sure)."
    assert max(map(len, lines)) <= 98
    assert filled(text, "README.md") == text


def test_a_verdict_of_nothing_is_refused(publish: Path) -> None:
    block = "<!-- verdict: {name} -->\n<!-- end of verdict -->\n"
    with pytest.raises(UserError, match="no results are published as none"):
        filled(block.format(name="none"), "README.md")
    with pytest.raises(UserError, match="does not end with <!-- end of verdict -->"):
        filled("<!-- verdict: shop -->\n", "README.md")
    (publish / "report.md").write_text("Nothing\n")
    sign(publish)
    with pytest.raises(UserError, match="does not open with a verdict"):
        filled(block.format(name="shop"), "README.md")
