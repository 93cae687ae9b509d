"""The trivial baselines: scores by hand, ranks as trained runs are ranked, settings by validation, an artifact of its own."""

import numpy as np
import pytest

from pipeline.grid.baselines import Baseline, baselines, cosine_similarity, interactions, item_counts, keep_largest

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
