"""The trivial baselines in Table 2 and in the verdict, and the page with the decision."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.grid.baseline_cells import directory_of, write_baselines
from pipeline.grid.cells import Cell, listed_cells
from pipeline.grid.execution import build_cell
from pipeline.params import load_params
from pipeline.report.decision import Beaten, Candidate, other_protocol, other_split, verdict
from pipeline.report.formats import Block, Entry, Table
from pipeline.report.trivial import below, beyond_table, sentences, trivial_rows, with_trivial
from pipeline.report.write import write_report
from tests.sign import sign

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
        Block("Office, SASRec (2 seeds)", ["Adapter", METRIC], lines),
        Block("Office, SASRec, beside the paper", ["Adapter", METRIC], lines),
    ]
    made = with_trivial(Table("table2", "Adapters", blocks, ["A note."], SUMMARY), SUMMARY, TRIVIAL, METRIC)
    assert [row[0].text for row in made.blocks[0].rows] == ["Base (ID only)", "AlphaFuse †", "SpecTran"]
    assert [[entry.text for entry in row] for row in made.blocks[0].footer] == [["Most popular", "0.1000"], ["ItemKNN", "0.2500"]]
    assert made.blocks[1] == blocks[1]
    assert made.notes == [
        "A note.",
        "Without training: Most popular, ItemKNN (20 neighbours); their settings are chosen on validation.",
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
    assert sentences(SUMMARY, trivial, [], METRIC) == [f"Office, SASRec: {says}"]


def test_what_is_not_measured_is_said() -> None:
    assert sentences(SUMMARY, pl.DataFrame(), ["office"], METRIC) == [
        "Without the trivial baselines of Office; `dvc repro grid/dvc.yaml:baselines@office` ranks them."
    ]


@pytest.fixture
def reported(project: Path, set_params: Callable[[dict[str, Any]], None]) -> Path:
    """The tiny grid, its baselines and its report."""
    set_params({"train.epochs": 12, "train.patience": 1, "grid.seeds": [0]})
    params = load_params()
    for cell in listed_cells(params.grid):
        build_cell(cell, params)
    write_baselines("tiny", "random", params.train.max_history, params.evaluate)
    write_report(params)
    return project


def test_the_report_and_the_decision_name_the_baselines(reported: Path, set_params: Callable[[dict[str, Any]], None]) -> None:
    report, decision = ((reported / f"metrics/{name}.md").read_text() for name in ("report", "decision"))
    knn = pl.read_csv(directory_of("tiny") / "metrics.csv").filter(pl.col("adapter") == "item_knn")["NDCG@20"][0]
    assert re.search(rf"\| ItemKNN +\| .*{knn:.4f}", report)
    assert "the best ranking without training (NDCG@20" in report
    rows = pl.concat(Cell("tiny", "sasrec", name).read() for name in ("base", "spectran"))
    means = rows.group_by("adapter").agg(
        pl.col("NDCG@20", "trainable_parameters", "training_seconds", "inference_seconds").mean()
    )
    leader = re.search(r"\| +\| (.+?) +\|", decision)[1]
    name = {"Base (ID only)": "base", "SpecTran": "spectran"}[leader]
    (mine,) = means.filter(pl.col("adapter") == name).to_dicts()
    users = pl.read_parquet("data/sequences/tiny/sequences.parquet").height
    for shown in (
        f"{mine['NDCG@20']:.4f} ",
        f"{1e3 * mine['inference_seconds'] / users:.3g} ms",
        f"{mine['trainable_parameters']:,.0f} trained parameters, {4 * mine['trainable_parameters'] / 2**20:.1f} MiB",
        f"{mine['training_seconds'] / 60:.1f} minutes",
        f"## Tiny, SASRec: {users:,} users, 1 seed",
        "`evaluate.exclude_history=true`",
    ):
        assert shown in decision
    # Another max_history: these baselines are of other settings, and so are left out and said to be missing.
    set_params({"train.max_history": 5})
    params = load_params()
    assert trivial_rows(params, ["tiny"])[1] == ["tiny"]


def runs(adapter: str, seconds: float = 1.0, size: int = 10) -> Candidate:
    return Candidate(pl.DataFrame({"adapter": [adapter], "training_seconds": [seconds], "trainable_parameters": [size]}))


def test_the_sentence_to_act_on() -> None:
    everyone = {"base": runs("base", 1, 30), "spectran": runs("spectran", 9, 20), "morec": runs("morec", 5, 10)}
    leader = everyone["spectran"]
    sure = Beaten("ItemKNN", 0.1, 0.5, 0.3, 0.7, 0.001)
    close = {"other": "base"}, {"other": "morec"}
    assert verdict(leader, everyone, [], sure, set()) == "Ship SpecTran: it is beyond chance above every other adapter."
    assert verdict(leader, everyone, list(close), sure, set()) == (
        "Ship SpecTran, or any of those level with it: Base (ID only), MoRec. The fastest of them to train is Base (ID only), "
        "the smallest MoRec."
    )
    for improvement, p, how in ((0.02, 0.4, "is not beyond chance above"), (-0.2, 0.001, "does not beat")):
        beaten = Beaten("ItemKNN", 0.1, improvement, 0.0, 0.0, p)
        said = verdict(leader, everyone, [], beaten, set())
        assert said == f"Ship none yet: SpecTran, the best adapter, {how} ItemKNN, which needs no training."
    assert verdict(leader, everyone, [], sure, {"spectran"}).startswith("No verdict yet: ")


def test_gains_are_those_of_the_definition(tmp_path: Path) -> None:
    """Two seeds; ranks 1, 3 and 21 give 1, 1/2 and 0."""
    frame = pl.DataFrame({"user_id": ["b", "a", "b", "a"], "rank": [1, 3, 3, 21]})
    frame.write_parquet(tmp_path / "ranks.parquet")
    gains = Candidate(pl.DataFrame({"adapter": ["x"], "run_directory": [str(tmp_path / "seed-0")]})).gains("rank", 20)
    assert gains["user_id"].to_list() == ["a", "b"]
    assert gains["gain"].to_list() == pytest.approx([0.25, 0.75])
    assert np.isfinite(gains["gain"].to_numpy()).all()


def test_what_was_dropped_is_a_section_of_the_report(reported: Path) -> None:
    from pipeline.artifacts import write_json
    from pipeline.data.findings import Finding
    from pipeline.runs import preprocess_report

    assert "What was dropped" not in (reported / "metrics/report.md").read_text()
    finding = Finding("cap", "Older, dropped: 30 interactions.", 30, 100, lost=True)
    write_json(preprocess_report("tiny"), {"findings": [finding.record()]})
    write_report(load_params())
    for name in ("report.md", "report.html"):
        assert "WARNING (30.0 %): Older, dropped: 30 interactions." in (reported / "metrics" / name).read_text()


def test_another_leader_under_the_other_protocol_is_named(tmp_path: Path) -> None:
    """Base has ranks 1 and 3, without history 3 and 3; SpecTran 3 and 3, without history 1 and 2."""
    candidates = {}
    for adapter, ranks, without in (("base", [1, 3], [3, 3]), ("spectran", [3, 3], [1, 2])):
        folder = tmp_path / adapter
        folder.mkdir()
        frame = pl.DataFrame({"user_id": ["a", "b"], "rank": ranks, "rank_without_history": without})
        frame.write_parquet(folder / "ranks.parquet")
        candidates[adapter] = Candidate(pl.DataFrame({"adapter": [adapter], "run_directory": [str(folder / "seed-0")]}))
    (said,) = other_protocol(candidates["base"], candidates, exclude_history=False, cutoff=20)
    assert "(`evaluate.exclude_history=true`), Base (ID only) is no longer best: SpecTran is, with NDCG@20 0.8155." in said
    assert (1 + 1 / np.log2(3)) / 2 == pytest.approx(0.8155, abs=1e-4)
    (said,) = other_protocol(candidates["base"], candidates, exclude_history=True, cutoff=20)
    assert "(`evaluate.exclude_history=false`), Base (ID only) is best too" in said
    frame.drop("rank_without_history").write_parquet(folder / "ranks.parquet")
    assert other_protocol(candidates["base"], candidates, exclude_history=False, cutoff=20) == []


def test_the_order_under_another_published_split_is_compared_by_pairs(project: Path) -> None:
    """0.3, 0.2, 0.1 here; 0.1, 0.2, 0.15 under the other split: two of three pairs of adapters change their order."""
    cell = {"dataset": "tiny", "backbone": "sasrec", "encoder": "random", "dim": 16, "seed": 0}
    here = {"base": 0.3, "morec": 0.2, "spectran": 0.1}
    candidates = {name: Candidate(pl.DataFrame([cell | {"adapter": name, METRIC: value}])) for name, value in here.items()}
    assert other_split(candidates["base"], candidates, 20) == [], "nothing is published"
    about = {"variant": None, "loss": "info_nce", "over": "seeds", "fingerprint": "f0", "commit": "c0", "torch": "2"}
    there = {"base": 0.1, "morec": 0.2, "spectran": 0.15}
    split = "by time: validation from 2013-10-01, test from 2013-12-01"
    for name, changes in (("cut", {"split": split}), ("same", {"split": "leave-one-out"}), ("old", {}), ("wide", {"dim": 32})):
        folder = project / "docs/results" / name
        folder.mkdir(parents=True)
        rows = [cell | about | {"adapter": adapter, METRIC: value} | changes for adapter, value in there.items()]
        pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / "runs.csv")
        sign(folder)
    (said,) = other_split(candidates["base"], candidates, 20)
    assert said == (
        f"Another split: {split} (docs/results/cut), Base (ID only) is not best: MoRec is, with NDCG@20 0.2000; 2 of 3 pairs of "
        "adapters change their order."
    )


def test_the_table_beyond_accuracy_has_means_over_seeds_and_the_baselines() -> None:
    key = {"dataset": "office", "backbone": "sasrec"}
    runs = pl.DataFrame(
        [
            key | {"adapter": name, "seed": seed, "coverage@20": share, "novelty@20": 5.0, "diversity@20": 0.5}
            for name, shares in (("base", [0.2, 0.4]), ("spectran", [0.5, 0.5]))
            for seed, share in enumerate(shares)
        ]
    )
    trivial = TRIVIAL.with_columns(**{"coverage@20": 0.01, "novelty@20": 2.0, "diversity@20": 0.9})
    table = beyond_table(runs, trivial)
    assert table is not None
    (block,) = table.blocks
    assert block.heading == "Office, SASRec (2 seeds)"
    assert block.header == ["Adapter", "Coverage@20", "Novelty@20", "Diversity@20"]
    assert [entry.text for entry in block.rows[0]] == ["Base (ID only)", "30.0 %", "5.000", "0.500"]
    assert block.rows[0][1].spread == "14.1"
    assert [[entry.text for entry in row] for row in block.footer] == [
        ["Most popular", "1.0 %", "2.000", "0.900"],
        ["ItemKNN", "1.0 %", "2.000", "0.900"],
    ]
    assert beyond_table(runs.drop("coverage@20", "novelty@20", "diversity@20"), trivial) is None
