"""Cells to tables and words: means, marks, improvements, and what is said where nothing is sure."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from models.errors import UserError
from pipeline.cells import cell_directory, listed_cells, read_cells, set_aside_unlisted
from pipeline.params import Grid, load_params
from pipeline.report import conclusion, report
from pipeline.tables import improvements, selected_markdown, summarise, table2_latex, table2_markdown, table_metrics

NAMES = table_metrics([10, 20])
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


OFFICE = {
    ("office", "sasrec", "base"): [0.10, 0.20],
    ("office", "sasrec", "alphafuse"): [0.30, 0.30],
    ("office", "sasrec", "spectran"): [0.36, 0.30],
}
BOTH = OFFICE | {
    ("demo", "sasrec", "base"): [0.50, 0.50],
    ("demo", "sasrec", "alphafuse"): [0.20, 0.20],
    ("demo", "sasrec", "spectran"): [0.40, 0.40],
}


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
    assert "±" not in table2_markdown(found)
    assert "(1 seed)" in table2_markdown(found)


def test_improvement_is_over_the_best_other_adapter_of_the_block() -> None:
    found = improvements(summary(BOTH)).filter(pl.col("metric") == "HR@20")
    assert dict(found.select("dataset", "best").rows()) == {"office": "alphafuse", "demo": "base"}
    assert dict(found.select("dataset", "improvement").rows()) == pytest.approx({"office": 0.1, "demo": -0.2})


def test_the_best_is_bold_and_the_second_underlined() -> None:
    table = parsed(table2_markdown(summary(OFFICE)))
    assert [row["Adapter"] for row in table] == ["Base (ID only)", "AlphaFuse", "SpecTran", "SpecTran over best other"]
    assert [row["HR@20"] for row in table] == ["0.1500 ± 0.0707", "<u>0.3000</u> ± 0.0000", "**0.3300** ± 0.0424", "+10.00 %"]
    assert [row["NDCG@10"] for row in table][:3] == ["0.0750 ± 0.0354", "<u>0.1500</u> ± 0.0000", "**0.1650** ± 0.0212"]
    assert list(table[0]) == ["Adapter", "NDCG@10", "NDCG@20", "HR@10", "HR@20"], "the paper's order"


def test_every_block_has_its_own_marks_and_the_average_is_over_blocks() -> None:
    text = table2_markdown(summary(BOTH))
    assert text.count("**") == 2 * 2 * 4
    assert text.count("<u>") == 2 * 4
    assert "on average: -5.00 %." in text
    assert "### Office, SASRec (2 seeds)" in text


def test_an_adapter_alone_is_neither_best_nor_second() -> None:
    text = table2_markdown(summary({("office", "sasrec", "spectran"): [0.1, 0.2]}))
    assert "**" not in text
    assert "over" not in text


def test_a_table_without_spectran_has_no_improvement() -> None:
    text = table2_markdown(summary({cell: seeds for cell, seeds in OFFICE.items() if cell[2] != "spectran"}))
    assert "SpecTran" not in text
    assert "**0.3000**" in text


def test_latex_has_the_same_figures_and_is_balanced() -> None:
    text = table2_latex(summary(BOTH))
    assert text.startswith("\\begin{tabular}{lcccc}\n\\toprule")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    lines = [line for line in text.splitlines() if " & " in line]
    assert all(line.count(" & ") == 4 and line.endswith(r" \\") for line in lines)
    assert len(lines) == 2 * (1 + 3 + 1)
    assert r"\textbf{0.3300} {\scriptsize $\pm$ 0.0424}" in text
    assert r"\underline{0.3000} {\scriptsize $\pm$ 0.0000}" in text
    assert r"+10.00\,\%" in text
    assert not re.search(r"(?<!\\)%", text), "a bare per cent sign would hide the rest of the line"


def test_latex_survives_the_names_that_users_give_their_datasets() -> None:
    values = {("my_shop & co #1", "sasrec", "base"): [0.1], ("my_shop & co #1", "sasrec", "spectran"): [0.2]}
    heading = next(line for line in table2_latex(summary(values)).splitlines() if "multicolumn" in line)
    assert r"My\_shop \& co \#1, SASRec" in heading


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
    return Grid(**({"dim": 16, "datasets": ["a", "b"], "backbones": ["sasrec"], "adapters": ["x", "y"], "seeds": [0]} | lists))


def write_cell(cell: Cell, **values: float) -> None:
    directory = cell_directory(*cell)
    directory.mkdir(parents=True)
    names = dict(zip(("dataset", "backbone", "adapter"), cell, strict=True))
    pl.DataFrame([names | {"seed": 0} | values]).write_csv(directory / "metrics.csv")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECTRAN_SCRATCH", raising=False)
    return tmp_path


def test_cells_are_listed_dataset_by_dataset() -> None:
    assert listed_cells(grid()) == [("a", "sasrec", "x"), ("a", "sasrec", "y"), ("b", "sasrec", "x"), ("b", "sasrec", "y")]


@pytest.mark.usefixtures("folder")
def test_missing_cells_are_named_unless_part_is_enough() -> None:
    cells = listed_cells(grid())
    write_cell(cells[1], HR=0.1)
    with pytest.raises(UserError, match=r"3 of 4 cells are missing \(a-sasrec-x, b-sasrec-x, b-sasrec-y\);.*--partial") as caught:
        read_cells(cells)
    assert "\n" not in str(caught.value)
    assert read_cells(cells, partial=True).to_dicts() == [
        {"dataset": "a", "backbone": "sasrec", "adapter": "y", "seed": 0, "HR": 0.1}
    ]


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
        write_cell(cell, HR=0.1)
    assert set_aside_unlisted(listed_cells(grid(adapters=["x"]))) == ["a-sasrec-y", "b-sasrec-y"]
    assert sorted(path.name for path in (folder / "grid/cells").iterdir()) == ["a-sasrec-x", "b-sasrec-x"]
    assert (folder / ".scratch/unlisted-cells/a-sasrec-y/metrics.csv").is_file()
    write_cell(("a", "sasrec", "y"), HR=0.2)
    assert set_aside_unlisted(listed_cells(grid(adapters=["x"]))) == ["a-sasrec-y"]
    assert "0.2" in (folder / ".scratch/unlisted-cells/a-sasrec-y/metrics.csv").read_text(), "the newer one takes the place"
    assert set_aside_unlisted(listed_cells(grid(adapters=["x"]))) == []


@pytest.mark.usefixtures("folder")
def test_there_may_be_no_cells_to_set_aside() -> None:
    assert set_aside_unlisted(listed_cells(grid())) == []


# --------------------------------------------------------------------------------------------------------------------- report


def test_a_gap_within_the_spread_has_no_winner() -> None:
    text = conclusion(summary(OFFICE))
    assert "Office, SASRec: SpecTran has the best NDCG@20, 0.3300, 10.0 % above AlphaFuse" in text
    assert "within the spread over seeds (0.0424): no winner" in text


def test_a_gap_beyond_the_spread_is_given_in_deviations() -> None:
    values = OFFICE | {("office", "sasrec", "spectran"): [0.61, 0.59]}
    text = conclusion(summary(values))
    assert "no winner" not in text
    assert "100.0 % above AlphaFuse, a gap of 21.2 standard deviations over seeds." in text


def test_one_seed_is_said_to_prove_little() -> None:
    text = conclusion(summary({cell: seeds[:1] for cell, seeds in OFFICE.items()}))
    assert "(one seed: no spread is known)" in text


def test_where_spectran_loses_it_is_said() -> None:
    assert "SpecTran is beaten by another adapter in at least one metric on Demo/SASRec." in conclusion(summary(BOTH))
    assert "beaten" not in conclusion(summary(OFFICE))


def test_spectran_is_not_called_beaten_where_it_was_not_run() -> None:
    values = OFFICE | {("demo", "sasrec", "base"): [0.5, 0.5]}
    assert "beaten" not in conclusion(summary(values))


def test_an_adapter_alone_is_compared_with_nothing() -> None:
    assert conclusion(summary({("office", "sasrec", "base"): [0.1, 0.2]})) == (
        "- Office, SASRec: Base (ID only) has the best NDCG@20, 0.1500."
    )


@pytest.mark.usefixtures("project")
def test_the_report_holds_data_tables_costs_and_settings() -> None:
    values = {("tiny", "sasrec", adapter): [0.1, 0.2] for adapter in ("base", "spectran")}
    text = report(load_params(), rows(values), summary(values))
    tables = parsed(text)
    sizes = next(row for row in tables if row.get("Dataset") == "Tiny" and "Users" in row)
    statistics = pl.read_parquet("data/sequences/tiny/sequences.parquet")
    assert sizes["Users"] == f"{statistics.height}"
    assert sizes["Interactions"] == f"{statistics['items'].list.len().sum():,}"
    assert [row["Trainable parameters"] for row in tables if "Epochs" in row] == ["1,234", "1,234"]
    assert "Encoder minilm, dim 16, 2 seeds." in text
    assert "learning rate 0.001" in text
    assert text.startswith("# Which adapter?\n")


def test_the_same_cells_give_the_same_figures_byte_for_byte(tmp_path: Path) -> None:
    from pipeline.figures import comparison, learning_curves

    curve = pl.DataFrame({"epoch": [1, 2], "NDCG@20": [0.1, 0.2]})
    histories = {("office", "sasrec"): {"base": [curve, curve], "spectran": [curve]}}
    drawn = []
    for name in "ab":
        comparison(summary(OFFICE), "HR@20", tmp_path / f"{name}.svg")
        learning_curves(histories, tmp_path / f"curves-{name}.svg")
        drawn.append(((tmp_path / f"{name}.svg").read_bytes(), (tmp_path / f"curves-{name}.svg").read_bytes()))
    assert drawn[0] == drawn[1]
    assert b"SpecTran" in drawn[0][0]
