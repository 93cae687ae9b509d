"""The paper's tables."""

import pytest

from pipeline.report.paper import paper_values
from pipeline.report.results import improvements


def test_the_papers_improvement_is_the_one_that_it_states() -> None:
    """The paper states 9.17 %, over the best baseline of each dataset, backbone and metric."""
    values = [row["improvement"] for row in improvements(paper_values("table2"), "paper").to_dicts()]
    assert len(values) == 4 * 3 * 4
    assert sum(values) / len(values) == pytest.approx(0.0917, abs=5e-5)
