"""A candidate's gains."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.report.candidate import Candidate


def test_gains_are_those_of_the_definition(tmp_path: Path) -> None:
    """Two seeds; ranks 1, 3 and 21 give 1, 1/2 and 0."""
    frame = pl.DataFrame({"user_id": ["b", "a", "b", "a"], "rank": [1, 3, 3, 21]})
    frame.write_parquet(tmp_path / "ranks.parquet")
    gains = Candidate(pl.DataFrame({"adapter": ["x"], "run_directory": [str(tmp_path / "seed-0")]})).gains("rank", 20)
    assert gains["user_id"].to_list() == ["a", "b"]
    assert gains["gain"].to_list() == pytest.approx([0.25, 0.75])
    assert np.isfinite(gains["gain"].to_numpy()).all()
