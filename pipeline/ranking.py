"""Full ranking: every item for every user, one rank per user."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.errors import UserError

SCORES_AT_ONCE = 4_000_000  # floats held by a chunk of users: what a cache holds, else comparing costs more than multiplying


def target_ranks(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Rank of each user's target among all items, from 1: 1 + #{s_j > s_t} + #{j < t: s_j = s_t}. (B,) int64

    states: (B, d); table: (N, d); targets: (B,). Ties go to the lower item index. Counted, not sorted.
    """
    scores = states @ table.T  # (B, N)
    of_target = scores.gather(1, targets[:, None])
    above = _count(scores > of_target)
    tied = (_count(scores >= of_target) - above > 1).nonzero().squeeze(1)  # rare: most targets tie with themselves only
    before = torch.arange(len(table), device=table.device) < targets[tied, None]
    above[tied] += _count((scores[tied] == of_target[tied]) & before)
    return 1 + above


def _count(flags: Tensor) -> Tensor:
    """True values in every row. (B, N) -> (B,) int64, by way of int32: counting in int64 widens every flag to eight bytes."""
    return flags.sum(1, dtype=torch.int32).long()


@torch.inference_mode()
def rank_all(
    states_of: Callable[[Tensor], Tensor],
    table: Tensor,
    history: Tensor,
    targets: Tensor,
    batch_size: int | None = None,
) -> np.ndarray:
    """Ranks for all users, in chunks that fit in memory. history: (U, L); targets: (U,) -> (U,) int64.

    Raises UserError where a vector is not finite: nothing is above NaN, so its target would count as ranked first.
    """
    size = batch_size or max(64, min(4096, SCORES_AT_ONCE // len(table)))
    finite = torch.isfinite(table).all()
    ranks = []
    for start in range(0, len(history), size):
        states = states_of(history[start : start + size])
        finite &= torch.isfinite(states).all()
        ranks.append(target_ranks(states, table, targets[start : start + size]))
    if not finite:
        raise UserError("the model's vectors hold NaN or infinity; lower train.learning_rate or check the adapter's options")
    return torch.cat(ranks).cpu().numpy()
