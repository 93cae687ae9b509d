"""The leave-one-out split and left padding, on a few hand-made users."""

from pathlib import Path

import polars as pl
import pytest
import torch

from common.errors import UserError
from pipeline.training.batches import items_before_test, load_sequences
from pipeline.training.sequences import read_sequences
from tests.pipeline.training.conftest import USERS, N
from tests.sign import sign

CPU = torch.device("cpu")


def test_the_last_item_tests_the_one_before_validates_the_rest_trains(artifact: Path) -> None:
    split = load_sequences(artifact, 3, CPU)
    assert split.n_items == N
    assert split.user_ids == list(USERS)
    assert split.test_target.tolist() == [0, 2, 7]
    assert split.valid_target.tolist() == [2, 7, 6]
    assert split.test_history.tolist() == [[N, 4, 2], [3, 5, 7], [4, 5, 6]], "the test history includes the validation item"
    assert split.valid_history.tolist() == [[N, N, 4], [1, 3, 5], [3, 4, 5]]
    assert split.train.tolist() == [[N, N, N, 4], [N, 1, 3, 5], [2, 3, 4, 5]]
    assert split.n_training_targets == 0 + 2 + 3


@pytest.mark.parametrize("history", [1, 2, 5, 10, 20])
def test_against_slices_of_python_lists(artifact: Path, history: int) -> None:
    def left_padded(items: list[int], width: int) -> list[int]:
        return [N] * (width - len(items[-width:])) + items[-width:]

    split = load_sequences(artifact, history, CPU)
    assert split.train.tolist() == [left_padded(items[:-2], history + 1) for items in USERS.values()]
    assert split.valid_history.tolist() == [left_padded(items[:-2], history) for items in USERS.values()]
    assert split.test_history.tolist() == [left_padded(items[:-1], history) for items in USERS.values()]
    assert split.train.dtype == split.test_target.dtype == torch.int64


def test_the_items_before_the_test_item_are_all_of_them_for_any_users_in_any_order(artifact: Path) -> None:
    before = items_before_test(artifact)
    assert before(torch.tensor([2, 0])).tolist() == [[0, 1, 2, 3, 4, 5, 6], [N, N, N, N, N, 4, 2]]
    assert before(torch.tensor([0])).tolist() == [[4, 2]], "no wider than these users want"
    assert [[i for i in row if i != N] for row in before(torch.arange(3)).tolist()] == [items[:-1] for items in USERS.values()]


def test_no_held_out_item_is_trained_on(tmp_path: Path) -> None:
    """Every interaction has its own item id, so held-out items must not occur in the training data."""
    lengths = [3, 9, 13, 4]
    ids = iter(range(sum(lengths)))
    items = [[next(ids) for _ in range(length)] for length in lengths]
    pl.DataFrame({"user_id": list("abcd"), "items": items}).write_parquet(tmp_path / "sequences.parquet")
    pl.DataFrame({"item_id": range(sum(lengths))}).write_parquet(tmp_path / "items.parquet")
    sign(tmp_path)
    split = load_sequences(tmp_path, 10, CPU)
    held_out = {item for user in items for item in user[-2:]}
    assert not held_out & set(split.train.flatten().tolist())
    assert not held_out & set(split.valid_history.flatten().tolist())
    assert not set(split.test_target.tolist()) & set(split.test_history.flatten().tolist())
    assert [row[-1] for row in split.test_history.tolist()] == split.valid_target.tolist()
    before = items_before_test(tmp_path)(torch.arange(len(items))).tolist()
    assert [[item for item in row if item != split.n_items] for row in before] == [user[:-1] for user in items]


@pytest.mark.parametrize(("column", "target"), [("test", "test"), ("valid", "validation")])
def test_a_split_without_targets_is_one_line(artifact: Path, column: str, target: str) -> None:
    users, _ = read_sequences(artifact)
    users.with_columns(pl.lit(None, pl.Int64).alias(column)).write_parquet(artifact / "sequences.parquet")
    sign(artifact)
    with pytest.raises(UserError, match=f"no user has a {target} target; see preprocess.split"):
        load_sequences(artifact, 3, CPU)


@pytest.mark.parametrize("name", ["sequences.parquet", "items.parquet"])
def test_a_missing_file_names_the_stage_that_makes_it(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(
        UserError, match=rf"{name} is missing; it is made by `dvc repro data/dvc.yaml:preprocess@{artifact.name}`"
    ):
        load_sequences(artifact, 3, CPU)
