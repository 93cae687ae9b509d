"""Popularity, ItemKNN and nearest text: scores of all items for users, from what they had before.

Every method has a few settings; which of them is taken is decided on validation, as it is for adapters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

TITLES = {"popularity": "Popularity", "item_knn": "ItemKNN", "text": "Nearest text"}
NEIGHBOURS = (20, 100, 500)  # of ItemKNN
WINDOWS = (1, None)  # last items of a history that nearest text reads; None: all that a backbone reads


@dataclass(frozen=True)
class Baseline:
    """A method with one of its settings. scores: histories (B, H), padded on the left with N -> (B, N)."""

    name: str
    setting: str
    scores: Callable[[np.ndarray], np.ndarray]


def baselines(train: np.ndarray, n_items: int, text: np.ndarray) -> Iterator[Baseline]:
    """Every method in each of its settings.

    train: (U, H) training items of every user, padded with N; text: (N, w) embeddings of the items' texts.
    """
    counts = item_counts(train, n_items)
    yield Baseline("popularity", "", lambda history: np.broadcast_to(counts, (len(history), n_items)))
    similarity = cosine_similarity(interactions(train, n_items))
    for neighbours in NEIGHBOURS:
        if neighbours == NEIGHBOURS[0] or neighbours < 2 * n_items:
            nearest = keep_largest(similarity, neighbours)
            yield Baseline("item_knn", f"{neighbours} neighbours", _summed(nearest, n_items))
    unit = unit_rows(text)
    for window in WINDOWS:
        setting = "the last item" if window else "the mean of the history"
        yield Baseline("text", setting, _nearest(unit, window))


def item_counts(train: np.ndarray, n_items: int) -> np.ndarray:
    """Training interactions of every item. (U, H) -> (N,) float32"""
    return np.bincount(train[train < n_items], minlength=n_items)[:n_items].astype(np.float32)


def interactions(histories: np.ndarray, n_items: int) -> sparse.csr_matrix:
    """1 where a user had an item, however often. (U, H) -> (U, N)"""
    users, places = np.nonzero(histories < n_items)
    ones = np.ones(len(users), dtype=np.float32)
    matrix = sparse.csr_matrix((ones, (users, histories[users, places])), shape=(len(histories), n_items))
    matrix.data[:] = 1
    return matrix


def cosine_similarity(users_by_items: sparse.csr_matrix) -> sparse.csr_matrix:
    """Cosine of every two items' columns of users, 0 of an item with itself (Sarwar et al. 2001). (U, N) -> (N, N)"""
    together = (users_by_items.T @ users_by_items).tocsr()
    counts = np.maximum(together.diagonal(), 1)
    scale = sparse.diags(1 / np.sqrt(counts))
    similarity = (scale @ together @ scale).tocsr()
    similarity.setdiag(0)
    similarity.eliminate_zeros()
    similarity.sort_indices()
    return similarity.astype(np.float32)


def keep_largest(similarity: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """The `count` largest entries of every row; of equal ones, those of the lower items. (N, N) -> (N, N)"""
    kept = []
    starts = similarity.indptr
    for row in range(similarity.shape[0]):
        values = similarity.data[starts[row] : starts[row + 1]]
        order = np.argsort(-values, kind="stable")[:count] if len(values) > count else np.arange(len(values))
        kept.append(starts[row] + np.sort(order))
    chosen = np.concatenate(kept) if kept else np.zeros(0, dtype=int)
    lengths = np.array([len(row) for row in kept])
    pointers = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix((similarity.data[chosen], similarity.indices[chosen], pointers), shape=similarity.shape)


def unit_rows(matrix: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays. (N, w) -> (N, w)"""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: np.ndarray = matrix / np.where(lengths > 0, lengths, 1)
    return unit


def _summed(similarity: sparse.csr_matrix, n_items: int) -> Callable[[np.ndarray], np.ndarray]:
    """Score: the sum of an item's similarities to the items of the history, of which it must be among their nearest."""
    return lambda history: (interactions(history, n_items) @ similarity).toarray()


def _nearest(unit: np.ndarray, window: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """Score: the cosine of an item's text and the mean of the texts of the last `window` items, up to a factor of the user."""
    padded = np.vstack([unit, np.zeros_like(unit[:1])])
    return lambda history: padded[history[:, -(window or history.shape[1]) :]].sum(1) @ unit.T
