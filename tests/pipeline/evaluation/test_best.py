"""The best k items, against a brute force of numpy in float64."""

import numpy as np
import pytest
import torch

from pipeline.evaluation import best
from pipeline.evaluation.best import Catalogue, best_items


def brute_force(
    states: np.ndarray, table: np.ndarray, k: int, cosine: bool, excluded: list[np.ndarray] | None = None
) -> np.ndarray:
    """Sort every user's items by float64 score, descending, then by index."""
    rows = table.astype(np.float64)
    if cosine:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
    chosen = np.full((len(states), k), -1)
    for user, state in enumerate(states.astype(np.float64)):
        scores = (rows * state).sum(1)
        if excluded is not None:
            scores[excluded[user]] = -np.inf
        order = np.lexsort((np.arange(len(rows)), -scores))[:k]
        order = order[scores[order] > -np.inf]
        chosen[user, : len(order)] = order
    return chosen


def normalised(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=[False, True], ids=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(best, "USERS", 7)
        monkeypatch.setattr(best, "ITEMS", 128)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("k", [1, 10, 499, 500])
def test_the_best_items_are_those_of_a_float64_brute_force(similarity: str, k: int) -> None:
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(500, 16)) * rng.lognormal(size=(500, 1))).astype(np.float32)
    states = normalised(rng, 30, 16)
    excluded = [rng.permutation(500)[: rng.integers(0, 40)] for _ in range(30)]
    catalogue = Catalogue(torch.from_numpy(table), similarity)
    for without in (None, excluded):
        items, scores = best_items(torch.from_numpy(states), catalogue, k, without)
        assert (items == brute_force(states, table, k, similarity == "cosine", without)).all()
        assert (scores[:, :-1] >= scores[:, 1:]).all()


@pytest.mark.usefixtures("blocks")
def test_ties_go_to_the_lower_index() -> None:
    """Whole numbers, whose products float64 holds exactly: many scores are equal."""
    rng = np.random.default_rng(1)
    table = rng.integers(-2, 3, size=(600, 4)).astype(np.float32)
    states = rng.integers(-2, 3, size=(20, 4)).astype(np.float32)
    states[3] = 0  # all scores are 0
    items, _ = best_items(torch.from_numpy(states), Catalogue(torch.from_numpy(table), "dot"), 10)
    assert (items == brute_force(states, table, 10, cosine=False)).all()
    assert items[3].tolist() == list(range(10))


@pytest.mark.usefixtures("blocks")
def test_scores_that_float32_cannot_tell_apart_are_ordered_by_float64() -> None:
    """Rows that differ in their last bits: hundreds of near ties, whose float32 order is another one."""
    rng = np.random.default_rng(2)
    table = np.repeat(normalised(rng, 1, 32), 400, axis=0)
    table *= 1 + rng.integers(-3, 4, size=table.shape) * np.float32(2**-23)
    states = normalised(rng, 12, 32)
    items, _ = best_items(torch.from_numpy(states), Catalogue(torch.from_numpy(table), "cosine"), 10)
    assert (items == brute_force(states, table, 10, cosine=True)).all()
    by_float32 = (-(states @ table.T)).argsort(axis=1, kind="stable")[:, :10]
    assert (items != by_float32).any(), "the example does not tell the two apart"


def test_a_user_with_too_few_items_left_gets_those() -> None:
    table, states = torch.eye(5), torch.ones(2, 5)
    items, scores = best_items(states, Catalogue(table, "dot"), 3, [np.array([0, 1, 3, 4]), np.arange(5)])
    assert items.tolist() == [[2, -1, -1], [-1, -1, -1]]
    assert scores.tolist() == [[1.0, -np.inf, -np.inf], [-np.inf] * 3]


def test_no_users_have_no_items() -> None:
    items, scores = best_items(torch.empty(0, 5), Catalogue(torch.eye(5), "dot"), 3)
    assert items.shape == scores.shape == (0, 3)
