"""The sequences artifact as padded tensors on a device, split leave-one-out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.training.sequences import read_sequences


@dataclass
class SplitSequences:
    """Every user's histories and targets as item ids, padded on the left with N.

    train: (U, L + 1); every item predicts its successor. valid_history, test_history: (U, L). valid_target, test_target: (U,).
    The test history includes the validation item. valid_excluded, test_excluded: (U, H), all items that a user had before the
    target, if these are excluded from the ranking; else None.
    """

    n_items: int
    user_ids: list[str]
    train: Tensor
    valid_history: Tensor
    valid_target: Tensor
    test_history: Tensor
    test_target: Tensor
    valid_excluded: Tensor | None = None
    test_excluded: Tensor | None = None

    @property
    def n_training_targets(self) -> int:
        """The number of targets in an epoch of a causal backbone, in which every position predicts its successor."""
        return int((self.train[:, :-1] != self.n_items).sum())


def load_sequences(directory: Path, max_history: int, device: torch.device, exclude_history: bool = False) -> SplitSequences:
    """Read the artifact and split it: the last item of a user is the test, the one before it validation, the rest training.

    max_history: L. exclude_history: whether to return the items to exclude. Raises UserError for a missing or damaged artifact.
    """
    users, n_items = read_sequences(directory)
    lengths = users["items"].list.len().to_numpy().astype(np.int64)
    flat = users["items"].explode().to_numpy().astype(np.int64)
    ends = lengths.cumsum()

    def window(stop: np.ndarray, width: int) -> Tensor:
        """Return each user's last `width` items before position `stop` of `flat` (exclusive), left-padded. (U, width)"""
        position = stop[:, None] - np.arange(width, 0, -1)
        inside = position >= (ends - lengths)[:, None]
        return torch.from_numpy(np.where(inside, flat[np.maximum(position, 0)], n_items)).to(device)

    def item(position: np.ndarray) -> Tensor:
        return torch.from_numpy(flat[position]).to(device)

    longest = int(lengths.max())
    return SplitSequences(
        n_items=n_items,
        user_ids=users["user_id"].to_list(),
        train=window(ends - 2, max_history + 1),
        valid_history=window(ends - 2, max_history),
        valid_target=item(ends - 2),
        test_history=window(ends - 1, max_history),
        test_target=item(ends - 1),
        valid_excluded=window(ends - 2, longest - 2) if exclude_history else None,
        test_excluded=window(ends - 1, longest - 1) if exclude_history else None,
    )
