"""Comparisons of each block's leader, among every adapter and among the paper's, and the tables of documents that show them."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from pipeline.artifacts import sha256, write_signed
from pipeline.grid.cells import Cell, read_cells
from pipeline.grid.published import RUNS
from pipeline.params import load_params
from pipeline.report.blocks import filled
from pipeline.report.leaders import COMPARISONS, compared, comparison_files, comparisons_file

HEADER = "among,dataset,backbone,metric,leader,other,mean,std,mean_other,std_other,improvement,low,high,p_holm,difference,seeds\n"
LINES = [
    "paper,toys,sasrec,NDCG@20,alphafuse,spectran,0.05,,0.04,,0.25,0.1,0.6,0.01,0.01,1",
    "paper,toys,sasrec,NDCG@20,alphafuse,llminit,0.05,,0.049,,0.0204,-0.01,0.05,0.2,0.001,1",
    "paper,toys,sasrec,NDCG@20,alphafuse,base,0.05,,0.03,,0.66,0.5,0.8,0.001,0.02,1",
    "paper,toys,sasrec,dot_NDCG@20,llminit,spectran,0.05,,0.04,,0.25,0.1,0.6,0.01,0.01,1",
    "paper,toys,sasrec,without_history_NDCG@20,alphafuse,spectran,0.05,,0.0,,,,,0.5,0.05,1",
    "paper,toys,sasrec,with_history_NDCG@20,alphafuse,spectran,0.05,,0.04,,0.25,-1.0,0.6,0.01,0.01,1",
    "paper,toys,sasrec,HR@20,alphafuse,spectran,0.05,,0.0,,,,,0.5,0.05,1",
    "paper,toys,sasrec,HR@20,alphafuse,base,0.05,0.001,0.09,0.001,-0.4,-0.5,-0.3,0.001,-0.04,3",
    "every,toys,sasrec,NDCG@20,spec_mlp,alphafuse,0.06,,0.05,,0.2,0.1,0.3,0.004,0.01,1",
]
RUN_HEADER = "dataset,backbone,adapter,encoder,dim,seed,variant,loss,fingerprint,commit,torch,over,similarity,exclude_history"
RUN_HEADER += ",NDCG@20,HR@20,dot_NDCG@20,without_history_NDCG@20,with_history_NDCG@20\n"
RUN = "toys,sasrec,base,minilm,8,0,,info_nce,f0,c0,2.13,seeds,cosine,false,0.03,0.09,0.01,0.01,0.01\n"
LEADERS = "".join(RUN.replace("base", name).replace("0.01", "0.05").replace("0.03", "0.05") for name in ("alphafuse", "llminit"))
BLOCK = '<!-- leaders: {about}\nshop "Shop, SASRec"\n-->\nold\n<!-- end of leaders -->\n'


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs/results/shop"
    folder.mkdir(parents=True)
    (folder / COMPARISONS).write_text(HEADER + "\n".join(LINES) + "\n")
    (folder / RUNS).write_text(RUN_HEADER + RUN + LEADERS)
    sign(folder)
    return folder


def sign(folder: Path, *others: str) -> None:
    write_signed(folder / "sidecar.json", {"files": {name: sha256(folder / name) for name in (COMPARISONS, RUNS, *others)}})


def row(text: str) -> list[str]:
    """The cells of the only row below the header."""
    return [line for line in text.splitlines() if line.startswith("|")][2].strip("| ").split(" | ")


@pytest.mark.usefixtures("shop")
def test_who_does_not_lead_is_compared_with_the_leader() -> None:
    """AlphaFuse is 25 % (10 to 60 %) above SpecTran, so SpecTran is 1 / 1.25 - 1 = -20 % (1 / 1.6 - 1 to 1 / 1.1 - 1) from it."""
    text = filled(BLOCK.format(about="spectran paper NDCG@20"), "README.md")
    assert "| | Seeds | Leader | Level with it | SpecTran vs. best other | 95 % interval | p |" in text
    name = "[Shop, SASRec](docs/results/shop/report.md)"
    assert row(text) == [name, "1", "AlphaFuse", "LLMInit", "-20.0 %", "-37.5 to -9.1 %", "0.0100"]
    assert "old" not in text
    assert filled(text, "README.md") == text
    assert "[Shop, SASRec](results/shop/report.md)" in filled(text, "docs/results.md")


def test_runs_of_a_version_that_did_not_record_how_they_were_ranked_are_refused(shop: Path) -> None:
    columns = [name for name in RUN_HEADER.strip().split(",") if name not in ("similarity", "exclude_history")]
    values = dict(zip(RUN_HEADER.strip().split(","), RUN.strip().split(","), strict=True))
    (shop / RUNS).write_text(f"{','.join(columns)}\n{','.join(values[name] for name in columns)}\n")
    sign(shop)
    with pytest.raises(UserError, match=r"docs/results/shop: its runs are of an older version, .* similarity, exclude_history$"):
        filled(BLOCK.format(about="spectran paper NDCG@20"), "README.md")


def with_runs_of(shop: Path, adapter: str) -> None:
    """Add a run above the leaders, by NDCG of both rankings, of an adapter that the comparisons leave out."""
    above = RUN.replace("base", adapter).replace("0.01", "0.06").replace("0.03", "0.06")
    (shop / RUNS).write_text(RUN_HEADER + RUN + LEADERS + above)
    sign(shop)


@pytest.mark.parametrize(("metric", "leader"), [("NDCG@20", "AlphaFuse"), ("dot_NDCG@20", "LLMInit"), ("HR@20", "AlphaFuse")])
def test_nobody_leads_if_an_adapter_without_a_conclusion_is_above(shop: Path, metric: str, leader: str) -> None:
    with_runs_of(shop, "unisrec")
    ndcg = metric.replace("HR", "NDCG")
    with pytest.raises(UserError, match=rf"^docs/results/shop: UniSRec scored above {leader} by {ndcg}, with runs that were "):
        filled(f'<!-- level: paper {metric}\nshop "Shop"\n-->\n<!-- end of level -->\n', "README.md")


def test_another_pair_of_the_folder_does_not_matter(shop: Path) -> None:
    with_runs_of(shop, "unisrec")
    (shop / RUNS).write_text((shop / RUNS).read_text().replace("toys,sasrec,unisrec", "beauty,sasrec,unisrec"))
    sign(shop)
    assert row(filled(BLOCK.format(about="spectran paper NDCG@20"), "README.md"))[2] == "AlphaFuse"


def test_among_the_paper_s_adapters_another_one_does_not_matter(shop: Path) -> None:
    with_runs_of(shop, "spec_mlp")
    assert row(filled(BLOCK.format(about="spectran paper NDCG@20"), "README.md"))[2] == "AlphaFuse"


@pytest.mark.usefixtures("shop")
def test_an_interval_that_reaches_the_leader_s_zero_has_no_end() -> None:
    text = filled(BLOCK.format(about="spectran paper with_history_NDCG@20"), "README.md")
    assert row(text)[5] == "-37.5 to +inf %"


@pytest.mark.parametrize(("column", "value"), [("similarity", "dot"), ("exclude_history", "true"), ("loss", "cross_entropy")])
@pytest.mark.parametrize("kind", ["leaders: spectran paper NDCG@20", "level: paper NDCG@20"])
def test_folders_whose_runs_differ_in_more_than_dataset_and_backbone_are_refused(
    shop: Path, kind: str, column: str, value: str
) -> None:
    other = shop.with_name("other")
    shutil.copytree(shop, other)
    old = dict(zip(RUN_HEADER.strip().split(","), RUN.strip().split(","), strict=True))
    (other / RUNS).write_text(RUN_HEADER + ",".join((old | {column: value}).values()) + "\n")
    sign(other)
    lines = 'shop "Shop"\nother "Other"'
    with pytest.raises(UserError) as caught:
        filled(f"<!-- {kind}\n{lines}\n-->\n<!-- end of {kind.partition(':')[0]} -->\n", "README.md")
    says = f"{column} is {old[column]} in docs/results/shop and {value} in docs/results/other"
    assert str(caught.value).lower().startswith(says)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ("spec_mlp every NDCG@20", ["SpecMLP (ours)", "–", "+20.0 %", "+10.0 to +30.0 %", "0.0040"]),
        ("alphafuse paper NDCG@20", ["AlphaFuse", "LLMInit", "+2.0 %", "-1.0 to +5.0 %", "0.2000"]),
    ],
)
@pytest.mark.usefixtures("shop")
def test_who_leads_is_compared_with_the_runner_up(about: str, expected: list[str]) -> None:
    text = filled(BLOCK.format(about=about), "README.md")
    assert row(text)[2:] == expected


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (BLOCK.format(about="nobody paper NDCG@20"), "leaders: there is no adapter nobody"),
        (BLOCK.format(about="spectran some NDCG@20"), "the leader is sought among every or paper, not some"),
        (BLOCK.format(about="whitenrec paper NDCG@20"), "docs/results/shop: whitenrec is not among its adapters"),
        (BLOCK.format(about="spectran paper NDCG@5"), "comparisons.csv: not one pair of dataset and backbone with NDCG@5 among"),
        (
            BLOCK.format(about="spectran paper NDCG@20").replace("shop ", "none "),
            "none/runs.csv is missing; `python -m",
        ),
        (BLOCK.format(about="spectran paper NDCG@20").replace("shop ", "../shop "), "is no published folder; write FOLDER or"),
        (
            BLOCK.format(about="spectran paper NDCG@20").replace("-->\nold", 'shop "Shop, SASRec"\n-->\n'),
            "is taken; every folder",
        ),
        (BLOCK.format(about="spectran paper without_history_NDCG@20"), "shop: without_history_NDCG@20 of spectran is 0"),
        (BLOCK.format(about="spectran paper HR@20"), "leaders: HR@20 does not decide who leads; choose NDCG of a ranking"),
        (BLOCK.format(about="spectran paper NDCG@20").replace('shop "Shop, SASRec"\n', ""), "README.md: a block lists nothing"),
        ('<!-- level: paper\nshop "Shop"\n-->\n<!-- end of level -->\n', "level: paper is not what a block of level starts with"),
        (BLOCK.format(about="spectran paper"), "leaders: spectran paper is not what a block of leaders starts with"),
        (
            BLOCK.format(about="spectran paper NDCG@20").replace("end of", ""),
            "a block of leaders does not end with <!-- end of leaders",
        ),
    ],
)
@pytest.mark.usefixtures("shop")
def test_a_table_that_cannot_be_written_is_one_line(block: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        filled(block, "README.md")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("shop")
def test_who_is_level_with_the_leader_by_every_metric() -> None:
    """By HR@20, Base is significantly above AlphaFuse, which leads by NDCG@20."""
    text = filled('<!-- level: paper NDCG@20 HR@20 dot_NDCG@20\nshop "Shop"\n-->\n<!-- end of level -->\n', "README.md")
    assert [line for line in text.splitlines() if line.startswith("| ")] == [
        "| | Shop |",
        "| NDCG@20 | AlphaFuse, LLMInit |",
        "| HR@20 | AlphaFuse, SpecTran; above: Base (ID only) |",
        "| NDCG@20, by dot product | LLMInit |",
    ]
    assert filled(text, "README.md") == text


def test_tuned_adapters_are_compared_among_themselves(shop: Path) -> None:
    """Tuned, SpecTran leads: its own comparisons are read, and the default ones stay as they are."""
    file = comparisons_file("info_nce")
    (shop / file).parent.mkdir()
    (shop / file).write_text(HEADER + "paper,toys,sasrec,NDCG@20,spectran,base,0.06,,0.05,,0.2,0.1,0.3,0.004,0.01,3\n")
    with (shop / RUNS).open("a") as runs:
        runs.write(RUN.replace("seeds", "tuned") + RUN.replace("seeds", "tuned").replace("info_nce", "cross_entropy"))
    sign(shop, file)
    tuned = BLOCK.format(about="spectran paper NDCG@20").replace("shop ", "tuned/shop/info_nce ")
    name = "[Shop, SASRec](docs/results/shop/report.md)"
    assert row(filled(tuned, "README.md")) == [name, "3", "SpecTran", "–", "+20.0 %", "+10.0 to +30.0 %", "0.0040"]
    assert row(filled(BLOCK.format(about="spectran paper NDCG@20"), "README.md"))[2] == "AlphaFuse"
    level = '<!-- level: paper NDCG@20\nshop "As shipped"\ntuned/shop/info_nce "Tuned"\n-->\n<!-- end of level -->\n'
    assert "| NDCG@20 | AlphaFuse, LLMInit | SpecTran |" in filled(level, "README.md")
    with pytest.raises(UserError, match=r"^loss is info_nce in .*shop and cross_entropy in .*shop$"):
        filled(level.replace("shop/info_nce", "shop/cross_entropy"), "README.md")
    with pytest.raises(UserError, match=r"^docs/results/shop/tuned/comparisons-cross_entropy.csv is missing; `python -m stages."):
        filled(tuned.replace("info_nce", "cross_entropy"), "README.md")


def test_every_set_of_a_folder_has_its_comparisons(cells: list[Cell]) -> None:
    """SpecTran's tuned runs are Base's and the other way round, so the other one leads."""
    rows = usable(cells)
    swapped = rows.with_columns(
        adapter=pl.col("adapter").replace({"base": "spectran", "spectran": "base"}), over=pl.lit("tuned"), loss=pl.lit("info_nce")
    )
    files = comparison_files(pl.concat([rows, swapped]), 20, load_params().train)
    assert list(files) == ["comparisons.csv", "tuned/comparisons-info_nce.csv"]
    tables = [pl.read_csv(content).filter(among="every", metric="NDCG@20") for content in files.values()]
    assert tables[0].select("leader", "other").row(0) == tables[1].select("other", "leader").row(0)
    assert tables[0]["mean"].to_list() == tables[1]["mean"].to_list()


@pytest.mark.parametrize("content", [b"", b"among\n", (HEADER + LINES[0]).encode(), b"\xff"])
def test_a_damaged_file_is_refused(shop: Path, content: bytes) -> None:
    (shop / COMPARISONS).write_bytes(content)
    with pytest.raises(UserError, match=r"comparisons.csv is damaged") as caught:
        filled(BLOCK.format(about="spectran paper NDCG@20"), "README.md")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'a,b\n"c'])
def test_a_signed_file_that_is_no_table_is_refused(shop: Path, content: bytes) -> None:
    (shop / COMPARISONS).write_bytes(content)
    sign(shop)
    with pytest.raises(UserError, match=r"comparisons.csv is not CSV") as caught:
        filled(BLOCK.format(about="spectran paper NDCG@20"), "README.md")
    assert "\n" not in str(caught.value)


def usable(cells: list[Cell]) -> pl.DataFrame:
    """The runs of the default settings, as if all had learned and stopped early."""
    return read_cells(cells).filter(pl.col("over") == "seeds").with_columns(best_epoch=pl.lit(2), epochs=pl.lit(12))


def test_one_adapter_is_compared_with_nobody_which_documents_say(
    shop: Path, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = compared(usable(cells).filter(adapter="base"), 20, load_params().train)
    assert table.height == 0
    table.write_csv(shop / COMPARISONS)
    monkeypatch.chdir(shop.parents[2])
    sign(shop)
    with pytest.raises(UserError, match="not one pair of dataset and backbone with NDCG@20"):
        filled(BLOCK.format(about="base every NDCG@20"), "README.md")


def test_adapters_with_unusable_runs_are_left_out(cells: list[Cell]) -> None:
    """Of three adapters, one was best at its first epoch: it is neither the leader nor one of the others."""
    rows = usable(cells)
    third = rows.filter(adapter="spectran").with_columns(adapter=pl.lit("spec_mlp"))
    for never in ("base", "spectran"):
        best = pl.when(adapter=never).then(1).otherwise(pl.col("best_epoch"))
        table = compared(pl.concat([rows, third]).with_columns(best_epoch=best), 20, load_params().train)
        assert {*table["leader"], *table["other"]} == {"base", "spectran", "spec_mlp"} - {never}
        assert {*table["among"]} == {"every"}


def test_a_ranking_that_a_cell_lacks_is_left_out(cells: list[Cell]) -> None:
    rows = usable(cells)
    old = rows.with_columns(pl.when(pl.col("adapter") != "base").then(pl.col("dot_NDCG@20")).alias("dot_NDCG@20"))
    table = compared(old, 20, load_params().train)
    assert {*table["metric"]} == {"NDCG@20", "HR@20", "without_history_NDCG@20", "without_history_HR@20"}


def test_the_leader_is_sought_twice_and_in_every_ranking(cells: list[Cell]) -> None:
    """Of Base, SpecTran and a copy of it, two are the paper's adapters. Each ranking has its own means and spread."""
    params = load_params()
    rows = usable(cells)
    ours = rows.filter(adapter="spectran").with_columns(adapter=pl.lit("spec_mlp"))
    table = compared(pl.concat([rows, ours]), 20, params.train)
    for (metric,), part in table.group_by("metric"):
        every, papers = (part.filter(among=among) for among in ("every", "paper"))
        assert {*every["leader"], *every["other"]} == {"base", "spectran", "spec_mlp"}
        assert {*papers["leader"], *papers["other"]} == {"base", "spectran"}
        leader, others = papers.select("leader", "mean", "std").rows(), papers.select("other", "mean_other", "std_other").rows()
        for adapter, mean, std in leader + others:
            runs = rows.filter(adapter=adapter)[str(metric)]
            assert (mean, std) == (pytest.approx(runs.mean()), pytest.approx(runs.std()))
    assert {"NDCG@20", "HR@20", "without_history_NDCG@20", "dot_HR@20"} <= {*table["metric"]}
