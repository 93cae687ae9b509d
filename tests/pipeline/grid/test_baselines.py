"""The trivial baselines: scores by hand, ranks as trained runs are ranked, settings by validation, an artifact of its own."""

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
from pipeline.grid.baselines import TITLES, Baseline, baselines, cosine_similarity, interactions, item_counts, keep_largest
from pipeline.params import load_params
from pipeline.training.metrics import metrics
from pipeline.training.ranking import target_ranks

# Four users, items 0 to 4; 5 is padding. Item 4 is in nobody's training.
TRAIN = np.array([[5, 0, 1, 2], [5, 5, 0, 1], [5, 5, 1, 3], [5, 5, 0, 0]])
TEXT = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 0.0], [0.0, -1.0]])


def by_setting(name: str) -> dict[str, Baseline]:
    return {one.setting: one for one in baselines(TRAIN, 5, TEXT) if one.name == name}


def test_popularity_counts_training_interactions() -> None:
    assert item_counts(TRAIN, 5).tolist() == [4, 3, 1, 1, 0]
    (most_popular,) = by_setting("popularity").values()
    assert most_popular.scores(TRAIN[:2]).tolist() == [[4, 3, 1, 1, 0]] * 2


def test_similarity_is_the_cosine_of_users_by_hand() -> None:
    """Item 0 has users 0, 1, 3; item 1 users 0, 1, 2; both together users 0 and 1: 2 / sqrt(3 x 3)."""
    found = cosine_similarity(interactions(TRAIN, 5)).toarray()
    expected = np.zeros((5, 5))
    for (i, j), value in {(0, 1): 2 / 3, (0, 2): 1 / 3**0.5, (1, 2): 1 / 3**0.5, (1, 3): 1 / 3**0.5}.items():
        expected[i, j] = expected[j, i] = value
    assert found == pytest.approx(expected, abs=1e-6)


def test_item_knn_sums_over_the_history_what_brute_force_sums() -> None:
    """Random data, 40 neighbours at most, ties to the lower item, against loops."""
    rng = np.random.default_rng(0)
    n = 60
    train = np.sort(rng.integers(0, n, (80, 9)), axis=1)
    history = np.where(rng.random((30, 6)) < 0.3, n, rng.integers(0, n, (30, 6)))
    found = {one.setting: one for one in baselines(train, n, rng.normal(size=(n, 3))) if one.name == "item_knn"}
    assert list(found) == ["20 neighbours", "100 neighbours"]
    had = np.zeros((80, n))
    for user, items in enumerate(train):
        had[user, items] = 1
    cosine = had.T @ had
    size = np.sqrt(np.maximum(np.diag(cosine), 1))
    cosine = cosine / size[:, None] / size
    np.fill_diagonal(cosine, 0)
    cosine = cosine.astype(np.float32)
    for count in (20, 100):
        expected = np.zeros((30, n))
        for user, items in enumerate(history):
            for item in set(items.tolist()) - {n}:
                nearest = sorted(range(n), key=lambda j: (-cosine[item, j], j))[:count]
                expected[user, nearest] += cosine[item, nearest]
        scores = found[f"{count} neighbours"].scores(history)
        # Cosines that are equal in exact arithmetic may differ in the last digit, which decides at the edge of 20 neighbours.
        close = np.isclose(scores, expected, atol=1e-5).mean()
        assert close > 0.98 if count == 20 else close == 1.0


def test_the_largest_entries_of_a_row_are_kept_and_equal_ones_by_the_lower_item() -> None:
    from scipy import sparse

    matrix = sparse.csr_matrix(np.array([[0, 3, 1, 3], [2, 0, 2, 2], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=np.float32))
    assert keep_largest(matrix, 2).toarray().tolist() == [[0, 3, 0, 3], [2, 0, 2, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_nearest_by_text_by_hand() -> None:
    """Cosines with item 0, (1, 0); and with the mean direction of items 0 and 1, (1, 1)."""
    found = by_setting("text")
    assert list(found) == ["the last item", "the mean of the history"]
    last = found["the last item"].scores(np.array([[5, 1, 0]]))[0]
    assert last == pytest.approx([1, 0, 0.5**0.5, 1, 0])
    mean = found["the mean of the history"].scores(np.array([[5, 1, 0]]))[0] / 2**0.5
    assert mean == pytest.approx([0.5**0.5, 0.5**0.5, 1, 0.5**0.5, -(0.5**0.5)])


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
