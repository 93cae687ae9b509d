"""Means, spreads and improvements of the grid's results."""

import polars as pl
import pytest

from pipeline.report.results import improvements
from tests.pipeline.report.values import BOTH, OFFICE, summary


def test_mean_and_sample_deviation_over_seeds_beside_the_papers_number() -> None:
    found = summary(OFFICE).filter((pl.col("adapter") == "spectran") & (pl.col("metric") == "NDCG@20")).row(0, named=True)
    assert found["mean"] == pytest.approx(0.33)
    assert found["std"] == pytest.approx(0.06 / 2**0.5)
    assert found["seeds"] == 2
    assert found["paper"] == 0.0612
    assert summary(BOTH).filter(pl.col("dataset") == "demo")["paper"].is_null().all()


def test_improvement_is_over_the_best_other_adapter_of_the_block() -> None:
    found = improvements(summary(BOTH)).filter(pl.col("metric") == "HR@20")
    assert dict(found.select("dataset", "best").rows()) == {"office": "alphafuse", "demo": "base"}
    assert dict(found.select("dataset", "improvement").rows()) == pytest.approx({"office": 0.1, "demo": -0.2})
