"""The sequences artifact as padded tensors on a device, split leave-one-out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pipeline.training.sequences import read_sequences


@dataclass
class SplitSequences:
    """The histories and targets of all users as item ids, padded on the left with N.

    train: (U, L + 1), in which every item predicts the next one. valid_history, test_history: (U, L). valid_target, test_target:
    (U,). The test history includes the validation item.
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
    """Read the sequences artifact and split it: a user's last item is for the test, the one before for validation, the rest for
    training.

    max_history: L. Raises UserError for a missing or damaged artifact.
    """
    users, n_items = read_sequences(directory)
    flat, starts, ends = _flat(users)

    def window(stop: np.ndarray, width: int) -> Tensor:
        """Return each user's last `width` items before position `stop` of `flat` (exclusive), left-padded. (U, width)"""
        return torch.from_numpy(_window(flat, starts, stop, width, n_items)).to(device)

    def item(position: np.ndarray) -> Tensor:
        return torch.from_numpy(flat[position]).to(device)

    return SplitSequences(
        n_items=n_items,
        user_ids=users["user_id"].to_list(),
        train=window(ends - 2, max_history + 1),
        valid_history=window(ends - 2, max_history),
        valid_target=item(ends - 2),
        test_history=window(ends - 1, max_history),
        test_target=item(ends - 1),
    )


def items_before_test(directory: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that returns all items of users before their test item, padded with N: (B,) -> (B, H).

    H is the length of the longest history among these users, because histories may be long if they are not capped.
    """
    users, n_items = read_sequences(directory)
    flat, starts, ends = _flat(users)

    def items(users: Tensor) -> Tensor:
        chosen = users.cpu().numpy()
        start, stop = starts[chosen], ends[chosen] - 1
        return torch.from_numpy(_window(flat, start, stop, int((stop - start).max()), n_items)).to(users.device)

    return items


def _flat(users: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all users' items, concatenated, (I,), and the start and end (exclusive) of each user's items, (U,). int64"""
    ends = users["items"].list.len().to_numpy().astype(np.int64).cumsum()
    return users["items"].explode().to_numpy().astype(np.int64), np.concatenate([[0], ends[:-1]]), ends


def _window(flat: np.ndarray, starts: np.ndarray, stops: np.ndarray, width: int, padding: int) -> np.ndarray:
    """Return the last `width` items of each user before position `stop` of `flat` (exclusive), left-padded. (U, width)"""
    position = stops[:, None] - np.arange(width, 0, -1)
    return np.where(position >= starts[:, None], flat[np.maximum(position, 0)], padding)
