"""The table of coverage, novelty and diversity."""

import polars as pl

from pipeline.report.beyond import beyond_table


def test_there_is_no_table_beyond_accuracy_of_runs_from_before_it_was_measured() -> None:
    runs = pl.DataFrame({"adapter": ["base"], "coverage@20": pl.Series([None], dtype=pl.Float64), "exclude_history": [False]})
    assert beyond_table(runs, pl.DataFrame()) is None


def test_the_table_beyond_accuracy_has_means_over_seeds_and_the_baselines() -> None:
    key = {"dataset": "office", "backbone": "sasrec"}
    runs = pl.DataFrame(
        [
            key | {"adapter": name, "seed": seed, "coverage@20": share, "novelty@20": 5.0, "diversity@20": 0.5}
            for name, shares in (("base", [0.2, 0.4]), ("spectran", [0.5, 0.5]))
            for seed, share in enumerate(shares)
        ]
    )
    lists = {"coverage@20": 0.01, "novelty@20": 2.0, "diversity@20": 0.9}
    trivial = pl.DataFrame([{"dataset": "office", "adapter": name} | lists for name in ("popularity", "item_knn")])
    table = beyond_table(runs, trivial)
    assert table is not None
    (block,) = table.blocks
    assert block.heading == "Office, SASRec (2 seeds)"
    assert block.header == ["Adapter", "Coverage@20", "Novelty@20", "Diversity@20"]
    assert [entry.text for entry in block.rows[0]] == ["Base (ID only)", "30.0 %", "5.000", "0.500"]
    assert block.rows[0][1].spread == "14.1"
    assert [[entry.text for entry in row] for row in block.footer] == [
        ["Popularity", "1.0 %", "2.000", "0.900"],
        ["ItemKNN", "1.0 %", "2.000", "0.900"],
    ]
    older = runs.with_columns(pl.when(pl.col("adapter") == "spectran").then("coverage@20").alias("coverage@20"))
    noted = beyond_table(older, trivial)
    assert noted is not None
    assert noted.notes[1:] == ["Published before these figures were measured: Base (ID only)."]
    assert beyond_table(runs.drop("coverage@20", "novelty@20", "diversity@20"), trivial) is None
