"""Figures: the same bytes for the same numbers, sorted, with values to hover over."""

import re
from pathlib import Path

import polars as pl
import pytest

from pipeline.report.figures import Figures
from tests.pipeline.report.values import GAINS, NO_RUNS, OFFICE, summary

NO_BASELINES = pl.DataFrame(schema={"dataset": pl.String})


@pytest.mark.usefixtures("project")
def test_the_same_cells_give_the_same_figures_byte_for_byte() -> None:
    drawn = []
    for name in "ab":
        directory = Path(name)
        directory.mkdir()
        Figures(directory, "spectran").comparison(summary(OFFICE), "HR@20", NO_BASELINES, NO_RUNS)
        drawn.append({file.name: file.read_bytes() for file in directory.rglob("*.*")})
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {"comparison.svg", "comparison.png"}
    assert b"SpecTran" in drawn[0]["comparison.svg"], "words are words, not outlines"
    assert drawn[0]["comparison.png"].startswith(b"\x89PNG")


def test_a_grid_of_many_adapters_is_drawn_sorted(tmp_path: Path) -> None:
    values = {("a", "sasrec", f"adapter{i}"): [0.1 + i] for i in range(23)}
    Figures(tmp_path).comparison(summary(values), "HR@20", NO_BASELINES, NO_RUNS)
    names = re.findall(r">(Adapter\d+)</text>", (tmp_path / "comparison.svg").read_text())
    assert names == [f"Adapter{i}" for i in reversed(range(23))]


def test_a_forest_plot_shows_gains_over_base(tmp_path: Path) -> None:
    figures = Figures(tmp_path, "morec")
    figures.forest(GAINS, "NDCG@20", NO_RUNS)
    text = (tmp_path / "forest.svg").read_text()
    assert re.findall(r"<title>(.*?)</title>", text) == [
        "MoRec: NDCG@20 0.3000, +50.0 % (+40.0 to +60.0) over Base",
        "SpecTran: NDCG@20 0.2200, +10.0 % (-10.0 to +30.0) over Base",
        "UniSRec: NDCG@20 0.1000, -50.0 % (-60.0 to -40.0) over Base",
    ]


def test_there_is_no_forest_without_base(tmp_path: Path) -> None:
    figures = Figures(tmp_path)
    figures.forest(GAINS.with_columns(gain=pl.lit(None, pl.Float64)), "NDCG@20", NO_RUNS)
    assert not figures.drawn
    assert not list(tmp_path.iterdir())
