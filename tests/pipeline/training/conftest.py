"""The recommenders that the models' tests build, sequences of four users, and ranks by sorting."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.models.conftest import embeddings, generator, make, spectrum
from tests.sign import sign

__all__ = ["embeddings", "generator", "make", "spectrum"]

USERS = {"short": [4, 2, 0], "middle": [1, 3, 5, 7, 2], "long": [0, 1, 2, 3, 4, 5, 6, 7]}
N = 8  # items; also the padding


def sorted_ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the position of each target, from 1, after sorting by score (descending) and index (ascending)."""
    ranks = []
    for row, target in zip(scores, targets, strict=True):
        order = np.lexsort((np.arange(len(row)), -row))
        ranks.append(int(np.flatnonzero(order == target)[0]) + 1)
    return np.array(ranks)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    users = pl.DataFrame({"user_id": list(USERS), "items": list(USERS.values())}, schema_overrides={"items": pl.List(pl.Int32)})
    users.write_parquet(tmp_path / "sequences.parquet")
    pl.DataFrame({"item_id": [f"i{i}" for i in range(N)]}).write_parquet(tmp_path / "items.parquet")
    sign(tmp_path)
    return tmp_path
