"""Coverage, novelty and diversity: against loops, against RecTools where it is installed, and of the lists that a run keeps.

RecTools 0.19 is not among the project's packages: `pip install --no-deps rectools==0.19.0 attrs implicit pandas` in another
folder, and that folder in PYTHONPATH, runs the comparison.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.core.adapter import Spectrum
from pipeline.evaluation.beyond import NAMES, beyond_accuracy, buyers
from pipeline.grid.baseline_cells import top_rows
from pipeline.grid.execution import evaluated
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training.inputs import load_spectrum
from pipeline.training.sequences import read_sequences

ITEMS, USERS, K = 30, 9, 5


def embedded(seed: int = 0) -> tuple[np.ndarray, Spectrum]:
    """Rows, and a spectrum of which they are U Σ."""
    rows = torch.randn(ITEMS, 7, generator=torch.Generator().manual_seed(seed))
    rows[4] = 0  # an item without a text
    U, sigma, V = torch.linalg.svd(rows, full_matrices=False)
    U[4] = 0  # not almost
    return rows.double().numpy(), Spectrum(U, sigma, V.T, torch.zeros(7), None)


def drawn(seed: int = 0) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Lists, of which the last two end early, and (user, item) pairs of the training, which some items are not in."""
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(ITEMS)[:K] for _ in range(USERS)])
    lists[-2, 3:] = lists[-1, 1:] = -1
    pairs = [(user, item) for user in range(USERS) for item in rng.integers(0, ITEMS // 2, 6).tolist()]
    return lists, pairs


def counted(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, int]:
    return np.bincount([item for _, item in set(pairs)], minlength=ITEMS), len({user for user, _ in pairs})


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths else 0.0


def test_against_loops() -> None:
    rows, spectrum = embedded()
    lists, pairs = drawn()
    lists[0, :2] = 4, 7  # the item without a text
    found = beyond_accuracy(lists, *counted(pairs), spectrum)
    novelties, diversities = [], []
    for row in lists:
        items = [int(item) for item in row if item >= 0]
        who = [max(1, len({user for user, item in pairs if item == each})) for each in items]
        novelties.append(sum(-math.log2(count / USERS) for count in who) / len(items))
        distances = [1 - cosine(rows[a], rows[b]) for a, b in itertools.combinations(items, 2)]
        diversities.append(sum(distances) / len(distances) if distances else 0)
    assert list(found) == list(NAMES) == ["coverage@20", "novelty@20", "diversity@20"]
    assert found["coverage@20"] == len(set(lists.flatten().tolist()) - {-1}) / ITEMS
    assert found["novelty@20"] == pytest.approx(np.mean(novelties))
    assert found["diversity@20"] == pytest.approx(np.mean(diversities), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_against_rectools(seed: int) -> None:
    metrics = pytest.importorskip("rectools.metrics")
    pandas = pytest.importorskip("pandas")
    rows, spectrum = embedded(seed)
    lists, pairs = drawn(seed)

    class Cosine:
        """The distance of two lists of items, as RecTools asks for it."""

        def __getitem__(self, both: tuple[Any, Any]) -> np.ndarray:
            return np.array([1 - cosine(rows[a], rows[b]) for a, b in zip(*both, strict=True)])

    listed = [(user, item, rank + 1) for user, row in enumerate(lists.tolist()) for rank, item in enumerate(row) if item >= 0]
    reco = pandas.DataFrame(listed, columns=["user_id", "item_id", "rank"])
    before = pandas.DataFrame(pairs, columns=["user_id", "item_id"])
    expected = (
        metrics.CatalogCoverage(k=20, normalize=True).calc(reco, range(ITEMS)),
        metrics.MeanInvUserFreq(k=20).calc(reco, before),
        metrics.IntraListDiversity(k=20, distance_calculator=Cosine()).calc(reco),
    )
    assert tuple(beyond_accuracy(lists, *counted(pairs), spectrum).values()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.usefixtures("project")
def test_the_lists_that_a_run_keeps_are_those_that_its_ranks_say() -> None:
    """A target is in the list where its rank is at most 20; lists without the history have none of it."""
    run = Run.of(load_params(), adapter="spectran")
    ranks = pl.read_parquet(evaluated(run) / "ranks.parquet")
    users, n_items = read_sequences(run.sequences)
    for row, items in zip(ranks.iter_rows(named=True), users["items"].to_list(), strict=True):
        *history, target = items
        assert (target in row["top"]) == (row["rank"] <= 20)
        assert not set(row["top_without_history"]) & set(history)
        if target not in history:
            assert (target in row["top_without_history"]) == (row["rank_without_history"] <= 20)
        kept = [item for item in row["top"] if item not in history]
        assert row["top_without_history"][: len(kept)] == kept, "best first, in both"
    lists = ranks["top"].to_numpy()
    assert lists.shape == (users.height, 20)
    found = beyond_accuracy(lists, *buyers(run.sequences), load_spectrum(run.spectrum))
    assert found["coverage@20"] == len(np.unique(lists)) / n_items


def test_buyers_are_counted_once_and_only_in_training(project: Path) -> None:
    users, n_items = read_sequences(project / "data/sequences/tiny")
    expected = [0] * n_items
    for items in users["items"]:
        for item in set(items[:-2]):
            expected[item] += 1
    counts, n_users = buyers(project / "data/sequences/tiny")
    assert counts.tolist() == expected
    assert n_users == users.height


def test_the_highest_of_a_row_are_those_of_a_stable_sort() -> None:
    scores = np.random.default_rng(0).integers(0, 6, (50, 40)).astype(np.float32)  # many ties
    expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :7], axis=1)
    assert top_rows(scores, 7).tolist() == expected.tolist()
    assert top_rows(scores, 99).tolist() == [list(range(40))] * 50
