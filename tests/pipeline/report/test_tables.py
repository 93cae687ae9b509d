"""Cells to tables: means, marks, improvements, tests, groups."""

import math
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import permutation_test

from common.errors import UserError
from pipeline.artifacts import atomic_directory
from pipeline.grid.cells import RUN_FILES, listed_cells, read_cells, set_aside_unlisted
from pipeline.grid.cells import Cell as GridCell
from pipeline.grid.tasks import unfinished
from pipeline.params import Grid, load_params
from pipeline.report.formats import latex, latex_text, markdown
from pipeline.report.results import (
    DIMENSION_KEYS,
    VARIANT_KEYS,
    comparisons,
    dimension_rows,
    improvements,
    long_form,
    summarise,
    table_metrics,
    user_groups,
    variant_rows,
)
from pipeline.report.tables import selected_markdown, significance, table2, table3, table4
from pipeline.training.metrics import metrics
from tests.pipeline.report.values import BOTH, OFFICE

NAMES = table_metrics([10, 20])
NOBODY = pl.DataFrame(schema={"dataset": pl.String, "backbone": pl.String, "adapter": pl.String, "why": pl.String})
Cell = tuple[str, str, str]


def rows(values: dict[Cell, list[float]]) -> pl.DataFrame:
    """A row per seed; every metric is the value given, except that NDCG@10 is half of it."""
    return pl.DataFrame(
        [
            dict(zip(("dataset", "backbone", "adapter"), cell, strict=True))
            | {"seed": seed, **dict.fromkeys(NAMES, value), "NDCG@10": value / 2}
            | {"encoder": "minilm", "dim": 16, "trainable_parameters": 1234, "epochs": 5, "best_epoch": 4}
            for cell, seeds in values.items()
            for seed, value in enumerate(seeds)
        ]
    )


def summary(values: dict[Cell, list[float]]) -> pl.DataFrame:
    return summarise(rows(values), NAMES)


def parsed(markdown: str) -> list[dict[str, str]]:
    """The rows of every table in a Markdown text, by the header's names."""
    tables = re.findall(r"(?m)(?:^\|.*\|$\n?)+", markdown)
    found = []
    for table in tables:
        header, rule, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
        assert all(re.fullmatch("-+", cell) for cell in rule)
        assert len({len(line) for line in (header, rule, *body)}) == 1, "every row has as many cells as the header"
        found += [dict(zip(header, line, strict=True)) for line in body]
    return found


# --------------------------------------------------------------------------------------------------------------------- tables


def test_mean_and_sample_deviation_over_seeds_beside_the_papers_number() -> None:
    found = summary(OFFICE).filter((pl.col("adapter") == "spectran") & (pl.col("metric") == "NDCG@20")).row(0, named=True)
    assert found["mean"] == pytest.approx(0.33)
    assert found["std"] == pytest.approx(0.06 / 2**0.5)
    assert found["seeds"] == 2
    assert found["paper"] == 0.0612
    assert summary(BOTH).filter(pl.col("dataset") == "demo")["paper"].is_null().all()


def test_one_seed_has_no_spread() -> None:
    found = summary({("office", "sasrec", "base"): [0.1]})
    assert found["std"].is_null().all()
    assert "±" not in markdown(table2(found))
    assert "(1 seed)" in markdown(table2(found))


def test_improvement_is_over_the_best_other_adapter_of_the_block() -> None:
    found = improvements(summary(BOTH)).filter(pl.col("metric") == "HR@20")
    assert dict(found.select("dataset", "best").rows()) == {"office": "alphafuse", "demo": "base"}
    assert dict(found.select("dataset", "improvement").rows()) == pytest.approx({"office": 0.1, "demo": -0.2})


def test_the_best_is_bold_and_the_second_underlined() -> None:
    table = parsed(markdown(table2(summary(OFFICE))))
    table, beside = table[:5], table[5:]
    labels = ["Base (ID only)", "AlphaFuse", "SpecTran", "SpecTran over best other", "the same in the paper"]
    assert [row["Adapter"] for row in table] == labels
    assert [row["HR@20"] for row in table[:4]] == ["0.1500 ± 0.0707", "<u>0.3000</u> ± 0.0000", "**0.3300** ± 0.0424", "+10.00 %"]
    assert [row["NDCG@10"] for row in table][:3] == ["0.0750 ± 0.0354", "<u>0.1500</u> ± 0.0000", "**0.1650** ± 0.0212"]
    assert list(table[0]) == ["Adapter", "NDCG@10", "NDCG@20", "HR@10", "HR@20"], "the paper's order"
    assert [row["Adapter"] for row in beside] == labels[:3]
    assert table[4]["HR@20"] == f"{100 * (0.1567 / 0.1244 - 1):+.2f} %", "the paper's own, over the same adapters"


def test_every_block_has_its_own_marks_and_the_average_is_over_blocks() -> None:
    text = markdown(table2(summary(BOTH)))
    assert text.count("**") == 2 * 2 * 4
    assert text.count("<u>") == 2 * 4
    theirs = [0.0471 / 0.0401, 0.0612 / 0.0511, 0.1003 / 0.0805, 0.1567 / 0.1244]
    assert f"on average: -5.00 %; the paper, with the same: {100 * (sum(theirs) / 4 - 1):+.2f} %, with all" in text
    assert "with all of its datasets, backbones and adapters: +9.17 %." in text
    assert "### Office, SASRec (2 seeds)" in text


def test_an_adapter_alone_is_neither_best_nor_second() -> None:
    text = markdown(table2(summary({("office", "sasrec", "spectran"): [0.1, 0.2]})))
    assert "**" not in text
    assert "over best other" not in text


def test_a_table_without_spectran_has_no_improvement() -> None:
    text = markdown(table2(summary({cell: seeds for cell, seeds in OFFICE.items() if cell[2] != "spectran"})))
    assert "SpecTran" not in text
    assert "in the paper" not in text
    assert "**0.3000**" in text


def test_the_papers_improvement_is_the_one_that_it_states() -> None:
    """9.17 %, over the best baseline of each dataset, backbone and metric."""
    values = [row["improvement"] for row in improvements(long_form("table2"), "paper").to_dicts()]
    assert len(values) == 4 * 3 * 4
    assert sum(values) / len(values) == pytest.approx(0.0917, abs=5e-5)


def test_ours_stand_beside_the_papers_with_the_difference() -> None:
    beside = next(block for block in table2(summary(BOTH)).blocks if block.heading == "Office, SASRec, beside the paper")
    at = beside.header.index("NDCG@20")
    ours = {row[0].text: [entry.value for entry in row[at : at + 3]] for row in beside.rows}
    assert beside.header[at : at + 3] == ["NDCG@20", "paper", "diff."]
    assert ours["SpecTran"] == pytest.approx([0.33, 0.0612, 0.33 - 0.0612])
    assert ours["Base (ID only)"] == pytest.approx([0.15, 0.0423, 0.15 - 0.0423])
    assert [block.heading for block in table2(summary(BOTH)).blocks if "Demo" in block.heading] == ["Demo, SASRec (2 seeds)"]


def test_markdown_latex_and_csv_hold_the_same_numbers(tmp_path: Path) -> None:
    table = table2(summary(BOTH))
    table.write(tmp_path)
    data = pl.read_csv(tmp_path / "table2.csv")
    assert data.columns == ["dataset", "backbone", "adapter", "metric", "mean", "std", "seeds", "paper", "difference"]
    for row in data.iter_rows(named=True):
        for file in ("table2.md", "table2.tex"):
            text = (tmp_path / file).read_text()
            assert f"{row['mean']:.4f}" in text
            assert f"{row['std']:.4f}" in text


def test_latex_is_balanced() -> None:
    text = latex(table2(summary(BOTH)))
    assert text.startswith("\\begin{tabular}{lcccc}\n\\toprule")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    for tabular in text.split("\n\n"):
        width = len(re.findall(r"begin.tabular..(l[c]+).", tabular)[0])
        lines = [line for line in tabular.splitlines() if " & " in line]
        assert all(line.count(" & ") == width - 1 and line.endswith(r" \\") for line in lines)
    assert r"\textbf{0.3300} {\scriptsize $\pm$ 0.0424}" in text
    assert r"\underline{0.3000} {\scriptsize $\pm$ 0.0000}" in text
    assert r"+10.00\,\%" in text
    assert not re.search(r"(?<!\\)%", text), "a bare per cent sign would hide the rest of the line"


def test_latex_survives_the_names_that_users_give_their_datasets() -> None:
    values = {("my_shop & co #1", "sasrec", "base"): [0.1], ("my_shop & co #1", "sasrec", "spectran"): [0.2]}
    heading = next(line for line in latex(table2(summary(values))).splitlines() if "multicolumn" in line)
    assert r"My\_shop \& co \#1, SASRec" in heading


def test_what_latex_takes_for_commands_is_printed() -> None:
    assert latex_text("a_b & 5 % of $3 {x} ^ ~ \\") == (
        r"a\_b \& 5 \% of \$3 \{x\} \textasciicircum{} \textasciitilde{} \textbackslash{}"
    )


VARIED = {"datasets": ["office"], "backbones": ["sasrec"], "variants": ["without_attention", "without_encoding"]}


def test_table_3_takes_base_and_spectran_from_the_cells_of_table_2() -> None:
    own = rows(OFFICE).with_columns(over=pl.lit("seeds"))
    other = rows({("office", "sasrec", "spectran"): [0.2, 0.3]}).with_columns(over=pl.lit("variants"))
    extra = [other.with_columns(variant=pl.lit(name)) for name in ("without_encoding", "without_attention")]
    found = variant_rows(pl.concat([own, *extra], how="diagonal"), grid(ablations=VARIED), "full")
    assert found["variant"].unique(maintain_order=True).to_list() == ["base", "spectran", "without_attention", "without_encoding"]
    summed = summarise(found, NAMES, VARIANT_KEYS, "table3")
    means = {row["variant"]: (row["mean"], row["paper"]) for row in summed.filter(metric="HR@20").iter_rows(named=True)}
    assert means["spectran"] == (pytest.approx(0.33), 0.1567)
    assert means["without_attention"] == (pytest.approx(0.25), 0.1553)
    ours, beside = table3(summed, []).blocks
    assert [row[0].text for row in ours.rows] == ["Base (ID only)", "SpecTran", "without φ(QKᵀ)", "without D"]
    assert ours.rows[1][4].mark == "best"
    assert not ours.footer, "an ablation is not compared as a method"
    assert beside.rows[3][11].value == 0.1103


def test_table_4_has_a_block_per_dim_and_counts_no_run_twice() -> None:
    lists = {"datasets": ["toys"], "backbones": ["sasrec"], "adapters": ["base", "spectran"], "dims": [16, 64]}
    cells = {("toys", "sasrec", "base"): [0.1], ("toys", "sasrec", "spectran"): [0.2], ("toys", "sasrec", "morec"): [0.3]}
    own = rows(cells).with_columns(over=pl.lit("seeds"), dim=64)
    dims = [rows(cells).filter(pl.col("adapter") != "morec").with_columns(over=pl.lit("dims"), dim=dim) for dim in (64, 16)]
    found = dimension_rows(pl.concat([own, *dims]), grid(dim=64, dimensions=lists))
    assert found.select("dim", "adapter").rows() == [(16, "base"), (16, "spectran"), (64, "base"), (64, "spectran")]
    summed = summarise(found, NAMES, DIMENSION_KEYS, "table4")
    assert summed.filter(dim=16, adapter="spectran", metric="NDCG@20")["paper"].to_list() == [0.0327]
    blocks = table4(summed, []).blocks
    assert [block.heading for block in blocks][::2] == ["Toys, SASRec, dim 16 (1 seed)", "Toys, SASRec, dim 64 (1 seed)"]
    assert [entry.text for entry in blocks[0].footer[0]] == ["SpecTran over best other", *["+100.00 %"] * 4]


# ----------------------------------------------------------------------------------------------------------- tests and groups


@pytest.fixture
def ranked(project: Path) -> pl.DataFrame:
    """Cells of the tiny dataset with drawn ranks: AlphaFuse and SpecTran, which are level, well ahead of Base."""
    users = pl.read_parquet("data/sequences/tiny/sequences.parquet")["user_id"]
    rng = np.random.default_rng(0)
    values: dict[Cell, list[float]] = {}
    for adapter, worst in (("base", 120), ("alphafuse", 42), ("spectran", 40)):
        cell = GridCell("tiny", "sasrec", adapter)
        cell.directory.mkdir(parents=True)
        frames = [
            pl.DataFrame({"user_id": users, "rank": rng.integers(1, worst, len(users))})
            .with_columns(seed=pl.lit(seed))
            .sample(fraction=1, shuffle=True, seed=seed)
            for seed in (0, 1)
        ]
        pl.concat(frames).write_parquet(cell.directory / "ranks.parquet")
        values["tiny", "sasrec", adapter] = [metrics(frame["rank"].to_numpy(), [20])["NDCG@20"] for frame in frames]
    return rows(values).with_columns(
        run_directory=pl.format("grid/cells/tiny-sasrec-{}/seed-{}", "adapter", "seed"), **{"HR@20": pl.col("NDCG@20")}
    )


def per_user(adapter: str) -> dict[str, list[float]]:
    """NDCG@20 of every user, averaged over seeds, without the code under test."""
    found: dict[str, list[float]] = {}
    for row in pl.read_parquet(f"grid/cells/tiny-sasrec-{adapter}/ranks.parquet").iter_rows(named=True):
        found.setdefault(row["user_id"], []).append(1 / math.log2(1 + row["rank"]) if row["rank"] <= 20 else 0.0)
    return found


def test_p_values_are_scipys_and_holms_are_by_hand(ranked: pl.DataFrame) -> None:
    found = {row["other"]: row for row in comparisons(ranked, 20, NOBODY).filter(metric="NDCG@20").iter_rows(named=True)}
    assert list(found) == ["base", "spectran"]
    ours = per_user("alphafuse")
    for other, row in found.items():
        theirs = per_user(other)
        pairs = np.array([(np.mean(ours[user]), np.mean(theirs[user])) for user in ours])
        assert row["users"] == len(pairs)
        assert row["difference"] == pytest.approx(pairs[:, 0].mean() - pairs[:, 1].mean())
        assert row["improvement"] == pytest.approx(pairs[:, 0].mean() / pairs[:, 1].mean() - 1)
        assert row["low"] < row["improvement"] < row["high"]
        expected = permutation_test(
            (pairs[:, 0], pairs[:, 1]),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            n_resamples=10_000,
            rng=1,
        ).pvalue
        assert row["p"] == pytest.approx(expected, abs=0.025)
    low, high = sorted(found.values(), key=lambda row: row["p"])
    assert low["p_holm"] == pytest.approx(2 * low["p"])
    assert high["p_holm"] == pytest.approx(max(high["p"], 2 * low["p"]))
    assert low["other"] == "base"
    assert low["p_holm"] < 0.05 < high["p_holm"]


def test_the_significance_table_marks_what_is_beyond_chance(ranked: pl.DataFrame) -> None:
    table = significance(comparisons(ranked, 20, NOBODY))
    (block,) = table.blocks
    assert [row[0].text for row in block.rows] == ["Base (ID only)", "SpecTran"]
    assert [row[4].mark for row in block.rows] == ["best", ""]
    assert block.footer[0][0].text == "AlphaFuse"
    assert table.data.columns[-6:] == ["low", "high", "p", "p_holm", "users", "seeds"]


def test_there_may_be_nothing_to_compare(ranked: pl.DataFrame) -> None:
    assert comparisons(ranked.filter(pl.col("adapter") == "spectran"), 20, NOBODY).height == 0


def test_the_leader_is_whoever_is_ahead(ranked: pl.DataFrame) -> None:
    found = comparisons(ranked.filter(pl.col("adapter") != "alphafuse"), 20, NOBODY)
    assert found["leader"].unique().to_list() == ["spectran"]
    unusable = ranked.filter(pl.col("adapter") == "alphafuse").with_columns(why=pl.lit("never learned"))
    found = comparisons(ranked, 20, unusable)
    assert found["leader"].unique().to_list() == ["spectran"], "an adapter with unusable runs does not lead"
    assert found["other"].unique(maintain_order=True).to_list() == ["base", "alphafuse"], "it stays in the table"


@pytest.mark.usefixtures("project")
def test_the_groups_are_thirds_of_the_interactions_and_quartiles_of_the_histories() -> None:
    """Recomputed from the sequences, item by item."""
    sequences = pl.read_parquet("data/sequences/tiny/sequences.parquet")
    histories = dict(sequences.select("user_id", "items").rows())
    counts = Counter(item for items in histories.values() for item in items[:-2])
    total = sum(counts.values())
    groups = user_groups("tiny")
    assert groups.height == 2 * len(histories)
    for row in groups.filter(by="popularity").iter_rows(named=True):
        popularity = counts[histories[row["user_id"]][-1]]
        above = sum(count for count in counts.values() if count > popularity)
        expected = "head" if above < total / 3 else "mid" if above < 2 * total / 3 else "tail"
        assert row["group"] == (expected if popularity else "tail")
    by_length = groups.filter(by="history")
    for row in by_length.iter_rows(named=True):
        low, _, high = row["group"].partition("–")
        assert int(low) <= len(histories[row["user_id"]]) - 2 <= int(high or low)
    assert 2 <= by_length["group"].n_unique() <= 4
    assert by_length.select("place", "group").unique().height == by_length["group"].n_unique()


def test_the_selected_run_stands_beside_the_papers_row_and_the_grids() -> None:
    run = {"dataset": "office", "encoder": "minilm", "backbone": "sasrec", "adapter": "spectran", "dim": "64", "seed": "3"}
    figures = {"HR@20": 0.1, "NDCG@20": 0.05, "MRR": 0.03}
    table = parsed(selected_markdown(figures, run, rows(BOTH), list(figures)))
    labels = [row[""] for row in table]
    assert labels == [
        "this run (spectran, dim 64, seed 3)",
        "paper (LLaMA3-8B, dim 128)",
        "grid: base, minilm, dim 16 (2 seeds)",
        "grid: alphafuse, minilm, dim 16 (2 seeds)",
        "grid: spectran, minilm, dim 16 (2 seeds)",
    ]
    assert [table[0][name] for name in figures] == ["0.1000", "0.0500", "0.0300"]
    assert [table[1][name] for name in figures] == ["0.1567", "0.0612", "–"]
    assert [table[4][name] for name in figures] == ["0.3300", "0.3300", "–"], "seeds are folded; the cells hold no MRR here"
    demo = run | {"dataset": "demo"}
    assert len(parsed(selected_markdown(figures, demo, None, list(figures)))) == 1


# ---------------------------------------------------------------------------------------------------------------------- cells


def grid(**lists: Any) -> Grid:
    none = {
        "ablations": {"datasets": [], "backbones": ["sasrec"], "variants": ["full"]},
        "dimensions": {"datasets": [], "backbones": ["sasrec"], "adapters": ["x"], "dims": [8]},
        "tuning": {"datasets": [], "backbones": ["sasrec"], "losses": ["info_nce"], "trials": 2},
    }
    return Grid(
        **({"dim": 16, "datasets": ["a", "b"], "backbones": ["sasrec"], "adapters": ["x", "y"], "seeds": [0]} | none | lists)
    )


def write_cell(cell: GridCell, *more: dict[str, Any], **values: float) -> None:
    """A cell of one seed, of whose files only metrics.csv has content."""
    names = {"dataset": cell.dataset, "backbone": cell.backbone, "adapter": cell.adapter, "seed": 0}
    with atomic_directory(cell.directory, {"cell": cell.name}) as directory:
        pl.DataFrame([names | values | row for row in more or ({},)]).write_csv(directory / "metrics.csv")
        (directory / "seed-0").mkdir()
        for name in ("ranks.parquet", *(f"seed-0/{name}" for name in RUN_FILES)):
            (directory / name).touch()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECTRAN_SCRATCH", raising=False)
    return tmp_path


def test_cells_are_listed_dataset_by_dataset() -> None:
    assert [cell.name for cell in listed_cells(grid())] == ["a-sasrec-x", "a-sasrec-y", "b-sasrec-x", "b-sasrec-y"]


def test_variants_dims_and_tuned_cells_are_cells_of_their_own() -> None:
    ablations = {"datasets": ["a"], "backbones": ["sasrec", "hstu"], "variants": ["full", "without_attention"]}
    dimensions = {"datasets": ["b"], "backbones": ["sasrec"], "adapters": ["y"], "dims": [4, 8]}
    tuning = {"datasets": ["b"], "backbones": ["hstu"], "losses": ["cross_entropy"], "trials": 2}
    cells = listed_cells(grid(ablations=ablations, dimensions=dimensions, tuning=tuning))[4:]
    assert [cell.name for cell in cells] == [
        "a-sasrec-spectran-variants",
        "a-hstu-spectran-variants",
        "b-sasrec-y-dims",
        "b-hstu-x-cross_entropy-tuned",
        "b-hstu-y-cross_entropy-tuned",
    ]
    assert [cell.stage for cell in cells] == [
        "grid/dvc.yaml:ablation@a-sasrec",
        "grid/dvc.yaml:ablation@a-hstu",
        "grid/dvc.yaml:dimension@b-sasrec-y",
        "grid/dvc.yaml:tuned@b-hstu-x-cross_entropy",
        "grid/dvc.yaml:tuned@b-hstu-y-cross_entropy",
    ]
    assert cells[1].run_directory({"variant": "full", "seed": 1}) == cells[1].directory / "full/seed-1"
    assert cells[2].run_directory({"dim": 8, "seed": 0}) == cells[2].directory / "dim-8/seed-0"


@pytest.mark.usefixtures("project")
def test_a_run_that_several_cells_need_is_one_run(set_params: Any) -> None:
    """SpecTran's full variant and the grid's own dim are the runs of Table 2, to the fingerprint."""
    set_params(
        {
            "grid.ablations": {"datasets": ["tiny"], "backbones": ["sasrec"], "variants": ["full", "without_encoding"]},
            "grid.dimensions": {"datasets": ["tiny"], "backbones": ["sasrec"], "adapters": ["spectran"], "dims": [8, 16]},
        }
    )
    params = load_params()
    fingerprints = {cell.name: {run.fingerprint for run in cell.runs(params)} for cell in listed_cells(params.grid)}
    main = fingerprints["tiny-sasrec-spectran"]
    assert len(main) == 2
    assert [len(found) for found in fingerprints.values()] == [2, 2, 4, 4]
    assert main < fingerprints["tiny-sasrec-spectran-variants"]
    assert main < fingerprints["tiny-sasrec-spectran-dims"]
    names = [run.name for run in unfinished(params)]
    assert len(names) == len(set(names)) == 2 + 2 + 2 + 2, "each once, and no two share a log"
    assert "tiny-sasrec-spectran without_encoding dim 16 seed 1" in names


@pytest.mark.usefixtures("folder")
def test_missing_cells_are_named_unless_part_is_enough() -> None:
    cells = listed_cells(grid())
    write_cell(cells[1], HR=0.1)
    with pytest.raises(UserError, match=r"3 of 4 cells are missing \(a-sasrec-x, b-sasrec-x, b-sasrec-y\);.*--partial") as caught:
        read_cells(cells)
    assert "\n" not in str(caught.value)
    (found,) = read_cells(cells, partial=True).to_dicts()
    assert found == {"dataset": "a", "backbone": "sasrec", "adapter": "y", "seed": 0, "HR": 0.1} | {
        "over": "seeds",
        "run_directory": "grid/cells/a-sasrec-y/seed-0",
    }


@pytest.mark.usefixtures("folder")
def test_no_cells_at_all_are_refused_even_in_part() -> None:
    with pytest.raises(UserError, match=r"4 of 4 cells are missing \(.*…\)"):
        read_cells(listed_cells(grid()), partial=True)


@pytest.mark.usefixtures("folder")
def test_cells_with_other_columns_are_read_together() -> None:
    cells = listed_cells(grid(datasets=["a"]))
    write_cell(cells[0], HR=0, epochs=3)
    write_cell(cells[1], HR=0.5)
    assert read_cells(cells)["HR"].to_list() == [0.0, 0.5]


def test_cells_that_the_grid_lists_no_longer_are_set_aside_not_deleted(folder: Path) -> None:
    for cell in product("ab", ["sasrec"], "xy"):
        write_cell(GridCell(*cell), HR=0.1)
    assert set_aside_unlisted(listed_cells(grid(adapters=["x"]))) == ["a-sasrec-y", "b-sasrec-y"]
    assert sorted(path.name for path in (folder / "grid/cells").iterdir()) == ["a-sasrec-x", "b-sasrec-x"]
    assert (folder / ".scratch/unlisted-cells/a-sasrec-y/metrics.csv").is_file()
    write_cell(GridCell("a", "sasrec", "y"), HR=0.2)
    assert set_aside_unlisted(listed_cells(grid(adapters=["x"]))) == ["a-sasrec-y"]
    assert "0.2" in (folder / ".scratch/unlisted-cells/a-sasrec-y/metrics.csv").read_text(), "the newer one takes the place"
    assert set_aside_unlisted(listed_cells(grid(adapters=["x"]))) == []


@pytest.mark.usefixtures("folder")
def test_there_may_be_no_cells_to_set_aside() -> None:
    assert set_aside_unlisted(listed_cells(grid())) == []
