"""The trivial baselines as an artifact: ranked as trained runs are, with settings that validation chose."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from common.errors import UserError
from pipeline.grid.baseline_cells import directory_of, rank_rows, ranks, read_baselines, write_baselines
from pipeline.grid.baselines import TITLES, Baseline
from pipeline.params import load_params
from pipeline.training.metrics import metrics
from pipeline.training.ranking import target_ranks


def test_ranks_are_those_of_trained_runs() -> None:
    """Against `target_ranks` on integer scores with many ties, with and without excluded items, whatever the chunks."""
    rng = np.random.default_rng(1)
    states, table = rng.integers(-1, 2, (50, 4)).astype(np.float32), rng.integers(-1, 2, (37, 4)).astype(np.float32)
    targets, excluded = rng.integers(0, 37, 50), rng.integers(0, 38, (50, 6))
    expected = target_ranks(*map(torch.from_numpy, (states, table, targets, excluded))).numpy()
    assert np.array_equal(rank_rows(states @ table.T, targets, excluded), expected)
    found = ranks(
        Baseline("x", "", lambda rows: states[rows[:, 0]] @ table.T), np.arange(50)[:, None], targets, lambda u: excluded[u]
    )
    assert np.array_equal(found, expected)


def test_an_artifact_with_ranks_metrics_and_the_settings_that_validation_chose(project: Path) -> None:
    params = load_params()
    said = write_baselines("tiny", "random", params.train.max_history, params.evaluate)
    rows = read_baselines(["tiny", "absent"])
    assert rows["adapter"].to_list() == list(TITLES)
    assert said == "tiny: " + ", ".join(f"{row['adapter']} NDCG@20 {row['NDCG@20']:.4f}" for row in rows.iter_rows(named=True))
    users = pl.read_parquet("data/sequences/tiny/sequences.parquet")
    made = pl.read_parquet(directory_of("tiny") / "ranks.parquet")
    # Popularity once more, in plain Python.
    sequences = users["items"].to_list()
    counts = [0] * pl.read_parquet("data/sequences/tiny/items.parquet").height
    for items in sequences:
        for item in items[:-2]:
            counts[item] += 1
    order = sorted(range(len(counts)), key=lambda item: (-counts[item], item))
    expected = [1 + order.index(items[-1]) for items in sequences]
    without = [1 + [i for i in order if i == items[-1] or i not in items[:-1]].index(items[-1]) for items in sequences]
    mine = made.filter(pl.col("adapter") == "popularity")
    assert mine["user_id"].equals(users["user_id"])
    assert (mine["rank"].to_list(), mine["rank_without_history"].to_list()) == (expected, without)
    (row,) = rows.filter(pl.col("adapter") == "popularity").to_dicts()
    assert {name: row[name] for name in ("NDCG@20", "HR@10", "MRR")} == pytest.approx(
        {name: metrics(np.array(expected), [10, 20])[name] for name in ("NDCG@20", "HR@10", "MRR")}
    )
    assert row["without_history_NDCG@20"] == pytest.approx(metrics(np.array(without), [20])["NDCG@20"])


def test_damaged_ranks_are_refused(project: Path) -> None:
    params = load_params()
    write_baselines("tiny", "random", params.train.max_history, params.evaluate)
    file = directory_of("tiny") / "metrics.csv"
    file.write_text(file.read_text().replace("0.", "0.9"))
    with pytest.raises(UserError, match="damaged"):
        read_baselines(["tiny"])


def test_the_stage_names_what_is_missing(
    project: Path, set_params: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages import baselines as stage

    monkeypatch.setattr(sys, "argv", ["baselines", "demo"])
    with pytest.raises(UserError, match="data/spectrum/demo/random"):
        stage.main()
    monkeypatch.setattr(sys, "argv", ["baselines", "tinny"])
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        stage.main()
