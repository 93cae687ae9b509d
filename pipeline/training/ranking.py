"""Full ranking: every item for every user, one rank per user."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError

ITEMS = {"cpu": 1024, "cuda": 65_536}  # whose scores are made together: on a CPU a product that a cache holds is twice as fast
USERS = {"cpu": 1024, "cuda": 4096}
HELD = {"cpu": 16_000_000, "cuda": 268_435_456}  # floats, scores of the items among which a chunk's targets are
WORD = 8  # flags, of a byte each, that are added in one 64-bit sum
NO_CARRY = 255  # words whose sum overflows no byte


def target_ranks(states: Tensor, table: Tensor, targets: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Rank of each user's target among all items, from 1: 1 + #{s_j > s_t} + #{j < t: s_j = s_t}. (B,) int64

    states: (B, d); table: (N, d); targets: (B,). With excluded, (B, H) item ids, N for none: (2, B), and the second row ranks the
    target among the other items only; the target itself is always among them.

    Ties go to the lower item index. Counted, not sorted: below the target's index an item is ahead where its score is as
    high, above it where it is higher, so every score is compared once and then forgotten. Only blocks of items that targets are
    among are kept until those are known: users are halved until they fit, which they do the sooner the closer targets are.
    """
    width = min(ITEMS[table.device.type], len(table))
    lowest, highest = int(targets.min()), int(targets.max())
    if len(targets) > 1 and len(targets) * (highest - lowest) > HELD[table.device.type]:
        parts = [(None, None) if given is None else given.tensor_split(2) for given in (states, targets, excluded)]
        halves = [target_ranks(some, table, theirs, without) for some, theirs, without in zip(*parts, strict=True)]
        return torch.cat(halves, dim=-1)
    starts = range(0, len(table), width)
    held, of_target = {}, states.new_empty(len(states), 1)
    for start in starts[lowest // width : highest // width + 1]:
        held[start] = _scores(states, table[start : start + width], width)
        users = ((targets >= start) & (targets < start + width)).nonzero().squeeze(1)
        of_target[users, 0] = held[start][users, targets[users] - start]
    ranks = torch.ones_like(targets)
    if excluded is not None:
        excluded = _once(excluded, len(table))
        excluded_ahead = torch.zeros_like(targets)
    for start in starts:
        scores = held.pop(start) if start in held else _scores(states, table[start : start + width], width)  # (B, W)
        ahead = torch.zeros(len(scores), -(-scores.shape[1] // WORD) * WORD, dtype=torch.bool, device=scores.device)
        flags = ahead[:, : scores.shape[1]]
        if start + scores.shape[1] <= lowest:
            torch.ge(scores, of_target, out=flags)
        elif start > highest:
            torch.gt(scores, of_target, out=flags)
        else:
            below = torch.arange(start, start + scores.shape[1], device=scores.device) < targets[:, None]
            flags.copy_(torch.where(below, scores >= of_target, scores > of_target))
        ranks += _count(ahead)
        if excluded is not None:
            inside = (excluded >= start) & (excluded < start + scores.shape[1])
            excluded_ahead += (flags.gather(1, (excluded - start).clamp(0, scores.shape[1] - 1)) & inside).sum(1)
    return ranks if excluded is None else torch.stack([ranks, ranks - excluded_ahead])


def _once(items: Tensor, none: int) -> Tensor:
    """Every row's items, sorted, repetitions replaced by `none`. (B, H) -> (B, H)"""
    items = items.sort(dim=1).values
    repeated = items[:, 1:] == items[:, :-1]
    return torch.cat([items[:, :1], items[:, 1:].masked_fill(repeated, none)], dim=1)


def _scores(states: Tensor, rows: Tensor, width: int) -> Tensor:
    """(B, d), (W, d) -> (B, W), by a product of `width` columns: in one of another shape equal rows could score otherwise."""
    if len(rows) == width:
        return states @ rows.T
    return (states @ F.pad(rows, (0, 0, 0, width - len(rows))).T)[:, : len(rows)]


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
    excluded: Callable[[Tensor], Tensor] | None = None,
) -> np.ndarray:
    """Ranks for all users, in chunks that fit in memory. history: (U, L); targets: (U,) -> (U,) int64.

    excluded: items to leave out for some users, (B,) -> (B, H); then the ranks are (2, U), the second row without those items.
    Users are taken in the order of their targets, for which `target_ranks` needs the least. Raises UserError where a vector is
    not finite: nothing is above NaN, so its target would count as ranked first.
    """
    finite = torch.isfinite(table).all()
    ranks = targets.new_empty((2, len(targets)) if excluded else (len(targets),))
    for users in targets.argsort(stable=True).split(batch_size or USERS[table.device.type]):
        states = states_of(history[users])
        finite &= torch.isfinite(states).all()
        ranks[..., users] = target_ranks(states, table, targets[users], excluded(users) if excluded else None)
    if not finite:
        raise UserError("the model's vectors hold NaN or infinity; lower train.learning_rate or check the adapter's options")
    return ranks.cpu().numpy()
