"""Popularity counts training interactions only; what is no table is refused."""

from pathlib import Path

import pytest

from common.errors import UserError
from pipeline.training.sequences import popularity, read_sequences
from tests.pipeline.training.conftest import USERS
from tests.sign import sign


def test_popularity_counts_training_interactions_only(artifact: Path) -> None:
    users, n_items = read_sequences(artifact)
    counts = popularity(users, n_items)
    assert counts.tolist() == [1, 2, 1, 2, 2, 2, 0, 0]
    assert counts.sum() == sum(len(items) - 2 for items in USERS.values())


@pytest.mark.parametrize("name", ["sequences.parquet", "items.parquet"])
def test_a_file_that_is_no_table_is_one_line(artifact: Path, name: str) -> None:
    """Even if the artifact was signed with it."""
    (artifact / name).write_text("no Parquet")
    sign(artifact)
    with pytest.raises(UserError, match=rf"^{artifact} is damaged \(.+\); delete it and run `dvc repro` again$") as caught:
        read_sequences(artifact)
    assert "\n" not in str(caught.value)
