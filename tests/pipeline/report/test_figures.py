"""Figures: the same bytes for the same numbers, values to hover over, colours that can be read in light and in dark."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file
from scipy.stats import studentized_range

from pipeline.report import findings
from pipeline.report.canvas import COLOURS
from pipeline.report.figures import Figures
from pipeline.report.mean_ranks import mean_ranks
from pipeline.report.overviews import attention_weights, draw_mean_ranks, draw_slopes, slopes, tiles
from pipeline.report.results import ResultSet
from tests.pipeline.report.values import BOTH, OFFICE, summary

NOTHING = pl.DataFrame()
NO_RUNS = pl.DataFrame(schema={"adapter": pl.String, "why": pl.String})
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


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1])
def test_every_colour_of_words_and_lines_can_be_read(mode: int) -> None:
    ground = luminance(COLOURS["ground"][mode])
    for name in ("ink", "other", "ours", "leader"):
        low, high = sorted([ground, luminance(COLOURS[name][mode])])
        assert (high + 0.05) / (low + 0.05) >= 4.5, name
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS), "a colour names its variable"


GAINS = pl.DataFrame(
    {
        "dataset": ["a"] * 4,
        "backbone": ["sasrec"] * 4,
        "adapter": ["morec", "spectran", "base", "unisrec"],
        "mean": [0.3, 0.22, 0.2, 0.1],
        "gain": [0.5, 0.1, 0.0, -0.5],
        "low": [0.4, -0.1, 0.0, -0.6],
        "high": [0.6, 0.3, 0.0, -0.4],
        "users": [100] * 4,
        "seeds": [1] * 4,
    }
)


def test_a_forest_plot_shows_gains_over_base_and_its_words_say_what_they_show(tmp_path: Path) -> None:
    figures = Figures(tmp_path, "morec")
    figures.forest(GAINS, "NDCG@20", NO_RUNS)
    text = (tmp_path / "forest.svg").read_text()
    assert re.findall(r"<title>(.*?)</title>", text) == [
        "MoRec: NDCG@20 0.3000, +50.0 % (+40.0 to +60.0) over Base",
        "SpecTran: NDCG@20 0.2200, +10.0 % (-10.0 to +30.0) over Base",
        "UniSRec: NDCG@20 0.1000, -50.0 % (-60.0 to -40.0) over Base",
    ]
    assert findings.forest(GAINS, NO_RUNS) == (
        "MoRec gains most over Base, +50.0 % (+40.0 to +60.0), the interval is above 0 for MoRec, around 0 for SpecTran, "
        "below 0 for UniSRec."
    )
    cut = pl.DataFrame({"dataset": ["a"], "backbone": ["sasrec"], "adapter": ["morec"], "why": ["not finished"]})
    assert findings.forest(GAINS, cut).startswith("SpecTran gains most over Base"), "nothing is said of runs that were cut short"


def test_there_is_no_forest_without_base(tmp_path: Path) -> None:
    figures = Figures(tmp_path)
    figures.forest(GAINS.with_columns(gain=pl.lit(None, pl.Float64)), "NDCG@20", NO_RUNS)
    assert not figures.drawn
    assert not list(tmp_path.iterdir())


def test_mean_ranks_over_pairs_with_the_critical_difference(tmp_path: Path) -> None:
    """Office: SpecTran, AlphaFuse, Base. Demo: Base, SpecTran, AlphaFuse. The critical difference as in Demsar (2006)."""
    found = mean_ranks(summary(BOTH), "HR@20")
    assert found is not None
    assert dict(found.ranks.rows()) == {"spectran": 1.5, "base": 2.0, "alphafuse": 2.5}
    assert found.critical == pytest.approx(2.343 * (3 * 4 / (6 * 2)) ** 0.5, abs=2e-3), "q of 3 methods is 2.343"
    assert studentized_range.ppf(0.95, 3, np.inf) / 2**0.5 == pytest.approx(2.343, abs=2e-3)
    assert found.p == pytest.approx(0.6065, abs=1e-3), "chi square 1 with 2 degrees of freedom"
    figures = Figures(tmp_path, "spectran")
    draw_mean_ranks(figures, found)
    assert "Base (ID only): mean rank 2.00" in (tmp_path / "mean-ranks.svg").read_text()
    assert "within the critical difference of 2.34 from it: Base (ID only) and AlphaFuse" in findings.mean_ranks(found)
    assert mean_ranks(summary(OFFICE), "HR@20") is None, "one pair has no mean over pairs"


def test_slopes_are_of_adapters_that_were_tuned(tmp_path: Path) -> None:
    tuned = summary({cell: [value + 0.1 for value in seeds] for cell, seeds in OFFICE.items() if cell[2] != "alphafuse"})
    sets = [ResultSet(loss, part, NOTHING, NOTHING, NO_RUNS) for loss, part in ((None, summary(OFFICE)), ("info_nce", tuned))]
    data = slopes(sets, "HR@20")
    assert set(data["adapter"]) == {"base", "spectran"}
    figures = Figures(tmp_path)
    draw_slopes(figures, data, "HR@20")
    assert "<title>SpecTran, tuned, InfoNCE: 0.4300</title>" in (tmp_path / "tuning.svg").read_text()
    assert findings.tuning(data, "HR@20").endswith("tuned, InfoNCE SpecTran, 0.4300.")
    assert slopes(sets[:1], "HR@20").height == 0


def test_the_weights_of_spectran_are_those_of_its_formula(tmp_path: Path) -> None:
    query, key = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [0.2, 2], [-3, 0.1]])
    tensors = {"adapter.query": query, "adapter.key": key, "adapter.threshold": np.array(0.5)}
    assert attention_weights(tmp_path) is None, "published runs have no weights"
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "analysis.json").write_text('{"learned": {"principal": [10, 20]}}')
    np.testing.assert_allclose(attention_weights(tmp_path), [[10.5, 0, -2.5], [0, 21.5, 0]])
    assert tiles(np.arange(-6.0, 6).reshape(2, 6)).shape == (2, 6)
    assert tiles(np.ones((64, 381))).shape == (32, 64)
