"""Mean ranks, Friedman's test and Nemenyi's critical difference."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import studentized_range

from pipeline.report import captions
from pipeline.report.figures import Figures
from pipeline.report.mean_ranks import MeanRanks, mean_ranks
from pipeline.report.overviews import draw_mean_ranks
from tests.pipeline.report.values import BOTH, OFFICE, summary


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
    assert "within the critical difference of 2.34 from it: Base (ID only) and AlphaFuse" in captions.mean_ranks(found)
    assert mean_ranks(summary(OFFICE), "HR@20") is None, "one pair has no mean over pairs"


@pytest.mark.parametrize(("p", "said"), [(0.0004, "p < 0.001"), (0.001, "p = 0.001"), (0.3, "p = 0.300")])
def test_a_small_p_is_never_called_zero(p: float, said: str) -> None:
    ranks = pl.DataFrame({"adapter": ["base", "spectran"], "rank": [2.0, 1.0]})
    assert captions.mean_ranks(MeanRanks(ranks, 6, p, 0.5)).endswith(f"(Friedman's test, {said}).")
