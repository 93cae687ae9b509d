"""Popularity counts training interactions only."""

from pathlib import Path

from pipeline.training.sequences import popularity, read_sequences
from tests.pipeline.training.conftest import USERS


def test_popularity_counts_training_interactions_only(artifact: Path) -> None:
    users, n_items = read_sequences(artifact)
    counts = popularity(users, n_items)
    assert counts.tolist() == [1, 2, 1, 2, 2, 2, 0, 0]
    assert counts.sum() == sum(len(items) - 2 for items in USERS.values())
