"""Slopes of tuned adapters, and the weights of SpecTran."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from pipeline.report import captions
from pipeline.report.figures import Figures
from pipeline.report.overviews import attention_weights, draw_slopes, slopes, tiles
from pipeline.report.results import ResultSet
from tests.pipeline.report.values import NO_RUNS, NOTHING, OFFICE, summary


def test_slopes_are_of_adapters_that_were_tuned(tmp_path: Path) -> None:
    tuned = summary({cell: [value + 0.1 for value in seeds] for cell, seeds in OFFICE.items() if cell[2] != "alphafuse"})
    sets = [ResultSet(loss, part, NOTHING, NOTHING, NO_RUNS) for loss, part in ((None, summary(OFFICE)), ("info_nce", tuned))]
    data = slopes(sets, "HR@20")
    assert set(data["adapter"]) == {"base", "spectran"}
    figures = Figures(tmp_path)
    draw_slopes(figures, data, "HR@20")
    assert "<title>SpecTran, tuned, InfoNCE: 0.4300</title>" in (tmp_path / "tuning.svg").read_text()
    assert captions.tuning(data, "HR@20").endswith("tuned, InfoNCE SpecTran, 0.4300.")
    assert slopes(sets[:1], "HR@20").height == 0


@pytest.mark.parametrize(("ended", "best"), [(False, "SpecTran, 0.3300"), (True, "AlphaFuse, 0.3000")])
def test_the_highest_by_setting_is_of_runs_that_support_a_conclusion(tmp_path: Path, ended: bool, best: str) -> None:
    """A cell that `train.epochs` ended is a hollow marker, and the sentence leaves it out for this setting alone."""
    cut_short = pl.DataFrame({"dataset": ["office"], "backbone": ["sasrec"], "adapter": ["spectran"]})
    tuned = ResultSet("info_nce", summary(OFFICE), NOTHING, NOTHING, cut_short if ended else NO_RUNS)
    data = slopes([ResultSet(None, summary(OFFICE), NOTHING, NOTHING, NO_RUNS), tuned], "HR@20")
    assert captions.tuning(data, "HR@20").endswith(f"as in params.yaml SpecTran, 0.3300; tuned, InfoNCE {best}.")
    draw_slopes(Figures(tmp_path), data, "HR@20")
    marker = (tmp_path / "tuning.svg").read_text().partition("<title>SpecTran, tuned, InfoNCE: 0.3300</title>")[2]
    assert ("fill: var(--ground)" in marker.partition("</g>")[0]) is ended


def test_the_weights_of_spectran_are_those_of_its_formula(tmp_path: Path) -> None:
    query, key = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [0.2, 2], [-3, 0.1]])
    tensors = {"adapter.query": query, "adapter.key": key, "adapter.threshold": np.array(0.5)}
    assert attention_weights(tmp_path) is None, "published runs have no weights"
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "analysis.json").write_text('{"learned": {"principal": [10, 20]}}')
    np.testing.assert_allclose(attention_weights(tmp_path), [[10.5, 0, -2.5], [0, 21.5, 0]])
    assert tiles(np.arange(-6.0, 6).reshape(2, 6)).shape == (2, 6)
    assert tiles(np.ones((64, 381))).shape == (32, 64)
