"""Full ranking: every item for every user, one rank per user."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.errors import UserError

# Floats held by a chunk of users. On a CPU what a cache holds, else comparing costs more than multiplying; on a GPU, 1 GiB.
SCORES_AT_ONCE = {"cpu": 4_000_000, "cuda": 268_435_456}
WORD = 8  # flags, of a byte each, that are added in one 64-bit sum
NO_CARRY = 255  # words whose sum overflows no byte


def target_ranks(
    states: Tensor, table: Tensor, targets: Tensor, excluded: Tensor | None = None, window: tuple[int, int] | None = None
) -> Tensor:
    """Rank of each user's target among all items, from 1: 1 + #{s_j > s_t} + #{j < t: s_j = s_t}. (B,) int64

    states: (B, d); table: (N, d); targets: (B,). Ties go to the lower item index. Counted, not sorted: below the target's index
    an item is ahead where its score is as high, above it where it is higher, so every score is compared once. Where indices of
    targets are mixed both are needed: `window` is their smallest and largest, if known; the closer they are, the better.
    excluded: (B, H) item ids that take no part, N for none; a user's target always does.
    """
    n_items = len(table)
    scores = states @ table.T  # (B, N)
    of_target = scores.gather(1, targets[:, None])  # (B, 1)
    if excluded is not None:
        scores.scatter_(1, torch.where(excluded < n_items, excluded, targets[:, None]), -torch.inf)
        scores.scatter_(1, targets[:, None], of_target)
    lowest, highest = window or (int(targets.min()), int(targets.max()))
    first, last = lowest, highest + 1
    ahead = torch.empty(len(scores), -(-n_items // WORD) * WORD, dtype=torch.bool, device=scores.device)
    ahead[:, n_items:] = False
    torch.ge(scores[:, :first], of_target, out=ahead[:, :first])
    torch.gt(scores[:, last:], of_target, out=ahead[:, last:n_items])
    mixed = scores[:, first:last]
    below = torch.arange(first, last, device=scores.device) < targets[:, None]
    ahead[:, first:last] = torch.where(below, mixed >= of_target, mixed > of_target)
    return 1 + _count(ahead)


def _count(flags: Tensor) -> Tensor:
    """True values in every row. (B, M), M a multiple of WORD -> (B,) int64.

    Eight flags are one 64-bit number; of sums of up to NO_CARRY such numbers every byte is a count.
    """
    counts = torch.zeros(len(flags), dtype=torch.int64, device=flags.device)
    for words in flags.view(torch.int64).split(NO_CARRY, dim=1):
        counts += words.sum(1).view(torch.uint8).view(len(flags), WORD).sum(1)
    return counts


@torch.inference_mode()
def rank_all(
    states_of: Callable[[Tensor], Tensor],
    table: Tensor,
    history: Tensor,
    targets: Tensor,
    batch_size: int | None = None,
    excluded: Tensor | None = None,
) -> np.ndarray:
    """Ranks for all users, in chunks that fit in memory. history: (U, L); targets: (U,); excluded: (U, H) -> (U,) int64.

    Users are taken in the order of their targets, for which counting is cheapest. Raises UserError where a vector is not finite:
    nothing is above NaN, so its target would count as ranked first.
    """
    size = batch_size or max(64, min(4096, SCORES_AT_ONCE[table.device.type] // len(table)))
    order = targets.argsort(stable=True)
    sorted_targets = targets[order]
    lowest, highest = sorted_targets[::size].tolist(), sorted_targets[size - 1 :: size].tolist()
    highest += sorted_targets[-1:].tolist()  # of a last chunk that is not full
    finite = torch.isfinite(table).all()
    ranks = torch.empty_like(targets)
    for chunk, window in zip(order.split(size), zip(lowest, highest, strict=False), strict=True):
        states = states_of(history[chunk])
        finite &= torch.isfinite(states).all()
        hidden = None if excluded is None else excluded[chunk]
        ranks[chunk] = target_ranks(states, table, targets[chunk], hidden, window)
    if not finite:
        raise UserError("the model's vectors hold NaN or infinity; lower train.learning_rate or check the adapter's options")
    return ranks.cpu().numpy()
