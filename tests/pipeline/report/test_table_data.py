"""The rows of Tables 3 and 4."""

import polars as pl
import pytest

from pipeline.report.results import summarise
from pipeline.report.table_data import DIMENSION_KEYS, VARIANT_KEYS, dimension_rows, variant_rows
from pipeline.report.tables import table3, table3_significance, table4
from tests.pipeline.grid.lists import grid
from tests.pipeline.report.values import NAMES, OFFICE, rows

VARIED = {"datasets": ["office"], "backbones": ["sasrec"], "variants": ["without_attention", "without_encoding"]}


def test_table_3_takes_base_and_spectran_from_the_cells_of_table_2() -> None:
    own = rows(OFFICE).with_columns(over=pl.lit("seeds"))
    other = rows({("office", "sasrec", "spectran"): [0.2, 0.3]}).with_columns(over=pl.lit("variants"))
    extra = [other.with_columns(variant=pl.lit(name)) for name in ("without_encoding", "without_attention")]
    found = variant_rows(pl.concat([own, *extra], how="diagonal"), grid(ablations=VARIED), "full")
    assert found["variant"].unique(maintain_order=True).to_list() == ["base", "spectran", "without_attention", "without_encoding"]
    summed = summarise(found, NAMES, VARIANT_KEYS, "table3")
    means = {row["variant"]: (row["mean"], row["paper"]) for row in summed.filter(metric="HR@20").iter_rows(named=True)}
    assert means["spectran"] == (pytest.approx(0.33), 0.1567)
    assert means["without_attention"] == (pytest.approx(0.25), 0.1553)
    means_block, paper_block = table3(summed, []).blocks
    assert [row[0].text for row in means_block.rows] == ["Base (ID only)", "SpecTran", "without φ(QKᵀ)", "without D"]
    assert means_block.rows[1][4].mark == "best"
    assert not means_block.footer, "an ablation is not compared as a method"
    assert paper_block.rows[3][11].value == 0.1103


def test_the_tests_of_variants_are_a_table_of_their_own() -> None:
    part = {"dataset": "office", "backbone": "sasrec", "metric": "NDCG@20", "variant": "without_encoding", "gain": -0.2}
    parts = pl.DataFrame([part | {"low": -0.3, "high": -0.1, "p_holm": 0.01, "users": 7}])
    table = table3_significance(parts)
    (block,) = table.blocks
    assert block.heading == "Office, SASRec (7 users)"
    assert [entry.text for entry in block.rows[0]] == ["without D", "-20.0 %", "-30.0 to -10.0 %", "0.0100"]
    assert table.data.equals(parts)


def test_table_4_has_a_block_per_dim_and_counts_no_run_twice() -> None:
    lists = {"datasets": ["toys"], "backbones": ["sasrec"], "adapters": ["base", "spectran"], "dims": [16, 64]}
    cells = {("toys", "sasrec", "base"): [0.1], ("toys", "sasrec", "spectran"): [0.2], ("toys", "sasrec", "morec"): [0.3]}
    own = rows(cells).with_columns(over=pl.lit("seeds"), dim=64)
    dims = [rows(cells).filter(pl.col("adapter") != "morec").with_columns(over=pl.lit("dims"), dim=dim) for dim in (64, 16)]
    found = dimension_rows(pl.concat([own, *dims]), grid(dim=64, dimensions=lists))
    assert found.select("dim", "adapter").rows() == [(16, "base"), (16, "spectran"), (64, "base"), (64, "spectran")]
    summed = summarise(found, NAMES, DIMENSION_KEYS, "table4")
    assert summed.filter(dim=16, adapter="spectran", metric="NDCG@20")["paper"].to_list() == [0.0327]
    blocks = table4(summed, []).blocks
    assert [block.heading for block in blocks][::2] == ["Toys, SASRec, dim 16 (1 seed)", "Toys, SASRec, dim 64 (1 seed)"]
    assert [entry.text for entry in blocks[0].footer[0]] == ["SpecTran over best other", *["+100.00 %"] * 4]
