"""The trivial baselines in Table 2 and in the verdict, and the page with the decision."""

import polars as pl
import pytest

from pipeline.report.formats import Block, Entry, Table
from pipeline.report.trivial import below, missing_baselines, sentences, with_trivial

METRIC = "NDCG@20"
SUMMARY = pl.DataFrame(
    [
        {"dataset": "office", "backbone": "sasrec", "adapter": adapter, "metric": METRIC, "mean": mean}
        for adapter, mean in (("base", 0.30), ("alphafuse", 0.20), ("spectran", 0.25))
    ]
)
TRIVIAL = pl.DataFrame(
    [
        {"dataset": "office", "adapter": "popularity", "setting": None, METRIC: 0.10},
        {"dataset": "office", "adapter": "item_knn", "setting": "20 neighbours", METRIC: 0.25},
    ]
)


def test_an_adapter_is_below_where_its_mean_is_lower_and_not_where_it_is_equal() -> None:
    assert below(SUMMARY, TRIVIAL, METRIC).select("adapter", "mean", "trivial", "value").rows() == [
        ("alphafuse", 0.20, "item_knn", 0.25)
    ]


def test_rows_stand_at_the_foot_of_the_means_and_a_lower_adapter_is_marked() -> None:
    lines = [[Entry(name), Entry("x")] for name in ("Base (ID only)", "AlphaFuse", "SpecTran")]
    blocks = [
        Block("Office, SASRec (2 seeds)", ["Adapter", METRIC], lines, pair=("office", "sasrec")),
        Block("Office, SASRec, beside the paper", ["Adapter", METRIC], lines),
    ]
    made = with_trivial(Table("table2", "Adapters", blocks, ["A note."], SUMMARY), SUMMARY, TRIVIAL, METRIC)
    assert [row[0].text for row in made.blocks[0].rows] == ["Base (ID only)", "AlphaFuse †", "SpecTran"]
    assert [[entry.text for entry in row] for row in made.blocks[0].footer] == [["Popularity", "0.1000"], ["ItemKNN", "0.2500"]]
    assert made.blocks[1] == blocks[1]
    assert made.notes == [
        "A note.",
        "Without training: Popularity, ItemKNN (20 neighbours); their settings are chosen on validation.",
        "† Below one of them by NDCG@20.",
    ]
    assert made.data.filter(pl.col("backbone") == "none").select("adapter", "metric", "mean").rows() == [
        ("popularity", METRIC, 0.10),
        ("item_knn", METRIC, 0.25),
    ]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0.15, "every adapter is above ItemKNN, the best ranking without training (NDCG@20 0.1500)."),
        (0.25, "below ItemKNN, the best ranking without training (NDCG@20 0.2500): AlphaFuse."),
        (
            0.35,
            "NO adapter beats ItemKNN, the best ranking without training (NDCG@20 0.3500); ship none of them before one does.",
        ),
    ],
)
def test_the_verdict_says_it(value: float, says: str) -> None:
    trivial = TRIVIAL.with_columns(pl.when(pl.col("adapter") == "item_knn").then(value).otherwise(pl.col(METRIC)).alias(METRIC))
    assert sentences(SUMMARY, trivial, METRIC) == [f"Office, SASRec: {says}"]
    assert sentences(SUMMARY, trivial, METRIC, "tuned, with the InfoNCE") == [f"Office, SASRec, tuned, with the InfoNCE: {says}"]


def test_what_is_not_measured_is_said() -> None:
    assert sentences(SUMMARY, pl.DataFrame(), METRIC) == []
    assert missing_baselines(["office"]) == [
        "Without the trivial baselines of Office; `dvc repro grid/dvc.yaml:baselines@office` ranks them."
    ]
