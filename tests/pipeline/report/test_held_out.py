"""The report's table of items held out of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.grid.cells import listed_cells, read_cells
from pipeline.grid.held_out import write_figures
from pipeline.params import load_params
from pipeline.report import users
from pipeline.report.held_out import held_out_table
from pipeline.report.write import write_report

FIGURES = [
    {"method": "popularity", "ids": "", "NDCG@20": 0.0, "held_out_NDCG@20": 0.01, "held_out_HR@20": 0.02},
    {"method": "spectran", "ids": "mean", "NDCG@20": 0.11, "held_out_NDCG@20": 0.22, "held_out_HR@20": 0.33},
    {"method": "morec", "ids": "", "NDCG@20": 0.05, "held_out_NDCG@20": 0.25, "held_out_HR@20": 0.31},
]


@pytest.fixture
def runs(reported: Path) -> pl.DataFrame:
    write_figures(load_params(), {"share": 0.2, "seed": 0}, FIGURES)
    return read_cells(listed_cells(load_params().grid), True).filter(over="seeds")


def test_methods_are_sorted_by_held_out_ndcg_and_stand_beside_the_groups_of_the_grid(runs: pl.DataFrame) -> None:
    grouped = users.grouped(runs, 20)
    table, notes = held_out_table(load_params(), runs, grouped, 20)
    assert table is not None
    assert notes == []
    (block,) = table.blocks
    assert block.heading == "Tiny, SASRec"
    assert [row[0].text for row in block.rows] == ["MoRec", "SpecTran, IDs: mean", "Popularity"]
    by_group = grouped.filter(by="popularity", metric="NDCG@20", adapter="spectran")
    means = {row["group"]: row["mean"] for row in by_group.iter_rows(named=True)}
    assert len(means) == 3
    assert [entry.value for entry in block.rows[1][1:]] == [0.22, 0.33, 0.11, means["head"], means["mid"], means["tail"]]
    assert [entry.value for entry in block.rows[0][1:]] == [0.25, 0.31, 0.05, None, None, None]  # not in the grid


def test_the_report_shows_them_and_leaves_them_out_once_settings_differ(
    runs: pl.DataFrame, set_params: Callable[[dict[str, Any]], None]
) -> None:
    write_report(load_params())
    assert "## Items held out of training" in Path("metrics/report.md").read_text()
    set_params({"train.max_history": 4})
    table, notes = held_out_table(load_params(), runs, users.grouped(runs, 20), 20)
    assert table is None
    (note,) = notes
    assert note.startswith("Held-out items: metrics/cold/tiny was measured with other settings and is left out; with `data")
    assert note.endswith("`dim: 16` in params.yaml, `python -m stages.cold` measures it again.")


def test_nothing_measured_is_no_mistake(reported: Path) -> None:
    rows = read_cells(listed_cells(load_params().grid), True).filter(over="seeds")
    assert held_out_table(load_params(), rows, users.grouped(rows, 20), 20) == (None, [])
