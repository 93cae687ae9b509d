"""What the report is made of, computed from the cells of the tiny project."""

from pathlib import Path

import pytest

from pipeline.grid.cells import listed_cells, read_cells
from pipeline.params import load_params
from pipeline.report.measured import Measured, of_table2


@pytest.mark.usefixtures("reported")
def test_every_part_is_of_the_same_runs() -> None:
    params = load_params()
    rows = read_cells(listed_cells(params.grid))
    measured = Measured.of(params, rows)
    assert measured.metric == f"NDCG@{measured.cutoff}" == f"NDCG@{max(params.evaluate.cutoffs)}"
    assert measured.default.equals(of_table2(rows))
    assert measured.first is measured.result_sets[0]
    assert measured.first.loss is None
    adapters = set(params.grid.adapters)
    for part in (measured.gains, measured.grouped, measured.cost, measured.first.summary):
        assert set(part["adapter"]) == adapters
    assert set(measured.trivial["dataset"]) == {"tiny"}
    assert measured.without_trivial == []


@pytest.mark.usefixtures("reported")
def test_variants_and_other_dims_are_not_of_table_2(reported: Path) -> None:
    rows = read_cells(listed_cells(load_params().grid))
    for over in ("variants", "dims", "tuned"):
        assert of_table2(rows.with_columns(over=rows["over"].replace("seeds", over))).is_empty()
