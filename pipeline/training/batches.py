"""The sequences artifact as padded tensors on a device, split into training, validation and test."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from common.errors import UserError
from pipeline.training.sequences import read_sequences


@dataclass
class SplitSequences:
    """Histories and targets as item ids, padded on the left with N.

    train: (U, L + 1), of all users, in which every item predicts the next one. valid_history: (V, L) and valid_target: (V,), of
    the users with a validation target; test_history: (T, L), test_target: (T,) and user_ids, of those with a test target. In
    leave-one-out, these are all users. The test history includes what came before the test target, validation items too.
    """

    n_items: int
    user_ids: list[str]
    train: Tensor
    valid_history: Tensor
    valid_target: Tensor
    test_history: Tensor
    test_target: Tensor

    @property
    def n_training_targets(self) -> int:
        """The number of targets in an epoch of a causal backbone, in which every position predicts the next item."""
        return int((self.train[:, :-1] != self.n_items).sum())


def load_sequences(directory: Path, max_history: int, device: torch.device) -> SplitSequences:
    """Read the sequences artifact and split it as `read_sequences` says.

    max_history: L. Raises UserError for a missing or damaged artifact, and if no user has a validation or a test target.
    """
    users, n_items = read_sequences(directory)
    flat, starts = _flat(users)

    def windows(chosen: np.ndarray, stops: np.ndarray, width: int) -> Tensor:
        """Return the last `width` items of the chosen users before positions `stops` of `flat`, left-padded. (U, width)"""
        return torch.from_numpy(_window(flat, starts[chosen], stops, width, n_items)).to(device)

    def targets(name: str) -> tuple[Tensor, Tensor]:
        """Return histories and targets of the users who have a target in the column `name`."""
        chosen = users[name].is_not_null().to_numpy()
        stops = starts[chosen] + users[name].drop_nulls().to_numpy()
        if not len(stops):
            kind = "test" if name == "test" else "validation"
            raise UserError(f"{directory}: no user has a {kind} target; see preprocess.split")
        return windows(chosen, stops, max_history), torch.from_numpy(flat[stops]).to(device)

    valid_history, valid_target = targets("valid")
    test_history, test_target = targets("test")
    return SplitSequences(
        n_items=n_items,
        user_ids=users.filter(pl.col("test").is_not_null())["user_id"].to_list(),
        train=windows(np.ones(len(starts), dtype=bool), starts + users["train"].to_numpy(), max_history + 1),
        valid_history=valid_history,
        valid_target=valid_target,
        test_history=test_history,
        test_target=test_target,
    )


def items_before_test(directory: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that returns all items of users before their test item, padded with N: (B,) -> (B, H).

    Users are positions among those with a test target. H is the length of the longest history among them, because histories may
    be long if they are not capped.
    """
    everyone, n_items = read_sequences(directory)
    tested = everyone.filter(pl.col("test").is_not_null())
    flat, starts = _flat(tested)
    stops = starts + tested["test"].to_numpy()

    def items(users: Tensor) -> Tensor:
        chosen = users.cpu().numpy()
        start, stop = starts[chosen], stops[chosen]
        return torch.from_numpy(_window(flat, start, stop, int((stop - start).max()), n_items)).to(users.device)

    return items


def _flat(users: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return all users' items, concatenated, (I,), and the start of each user's items, (U,). int64"""
    ends = users["items"].list.len().to_numpy().astype(np.int64).cumsum()
    return users["items"].explode().to_numpy().astype(np.int64), np.concatenate([[0], ends[:-1]])


def _window(flat: np.ndarray, starts: np.ndarray, stops: np.ndarray, width: int, padding: int) -> np.ndarray:
    """Return the last `width` items of each user before position `stop` of `flat` (exclusive), left-padded. (U, width)"""
    position = stops[:, None] - np.arange(width, 0, -1)
    return np.where(position >= starts[:, None], flat[np.maximum(position, 0)], padding)
