"""Full ranking: the rank of each user's target among all items."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError

ITEMS = {"cpu": 1024, "cuda": 65_536}  # items of a block of scores; on a CPU, a block that fits into the cache is twice as fast
USERS = {"cpu": 1024, "cuda": 4096}  # users of a chunk
ROWS = {"cpu": 256, "cuda": 1024}  # users that are left out together, where ranks beyond a cutoff need not be exact
HELD = {"cpu": 16_000_000, "cuda": 268_435_456}  # the largest number of scores to keep for the targets of a chunk
WORD = 8  # flags of one byte each that are added as one 64-bit number
NO_CARRY = 255  # 64-bit numbers whose sum cannot overflow any byte


def target_ranks(
    states: Tensor, table: Tensor, targets: Tensor, excluded: Tensor | None = None, beyond: int | None = None
) -> Tensor:
    """Return the rank of each user's target among all items, from 1: 1 + #{s_j > s_t} + #{j < t: s_j = s_t}. (B,) int64

    states: (B, d); table: (N, d); targets: (B,). Ties go to the lower item index. With excluded, (B, H) item ids, N for none, the
    result is (2, B): the second row ranks the target without these items. The target itself always takes part.

    beyond: any other rank above it may be returned instead of one above it. That is faster, and changes no metric whose cutoff is
    at most `beyond`. Not together with excluded.

    Example: the target, item 2, scores 0.5. Item 1 scores more, and item 0 scores the same with a lower index: rank 3.
    If item 1 is excluded, the rank is 2.

    >>> state, table, target = torch.tensor([[1.0]]), torch.tensor([[0.5], [0.9], [0.5], [0.5]]), torch.tensor([2])
    >>> target_ranks(state, table, target)
    tensor([3])
    >>> target_ranks(state, table, target, excluded=torch.tensor([[1, 4]]))
    tensor([[3],
            [2]])

    Nothing is sorted. Items before the target are ahead if their score is at least as high, items after it if it is higher, so
    each score is compared once and then discarded. Scores are computed block by block, `width` items at a time:

    1. The blocks that contain targets are computed first and kept, because they hold the targets' scores.
    2. Then every block is compared. If all targets lie after the block, one comparison (>=) is enough for all users; if all lie
       before it, one (>) is; a block that contains targets needs both. With `beyond`, users whose target is beyond it are left
       out of later blocks, as soon as that saves a product.

    If the kept scores would be too large, the users are halved; with users sorted by target, halving also narrows the range of
    blocks to keep.
    """
    if beyond is not None and excluded is not None:
        raise ValueError("give either `beyond` or `excluded`")
    width = min(ITEMS[table.device.type], len(table))
    lowest, highest = int(targets.min()), int(targets.max())
    if len(targets) > 1 and len(targets) * (highest - lowest) > HELD[table.device.type]:
        parts = [(None, None) if given is None else given.tensor_split(2) for given in (states, targets, excluded)]
        halves = [target_ranks(part, table, items, without, beyond) for part, items, without in zip(*parts, strict=True)]
        return torch.cat(halves, dim=-1)
    # All products have the same shape, of `height` users: in products of other shapes, equal items could get other scores.
    products = 1 if beyond is None else -(-len(states) // ROWS[table.device.type])
    height = -(-len(states) // products)
    starts = range(0, len(table), width)
    held, of_target = {}, states.new_empty(len(states), 1)
    for start in starts[lowest // width : highest // width + 1]:
        held[start] = _scores(states, table[start : start + width], height, width)
        users = ((targets >= start) & (targets < start + width)).nonzero().squeeze(1)
        of_target[users, 0] = held[start][users, targets[users] - start]
    ranks = torch.ones_like(targets)
    users = torch.arange(len(targets), device=targets.device)  # (O,), those whose rank is open
    if excluded is not None:
        excluded = _once(excluded, len(table))
        excluded_ahead = torch.zeros_like(targets)
    for start in [*held, *(start for start in starts if start not in held)]:
        if start not in held and beyond is not None:
            left = (ranks[users] <= beyond).nonzero().squeeze(1)
            if -(-len(left) // height) < -(-len(users) // height):  # fewer products
                users, states, of_target = users[left], states[left], of_target[left]
            if not len(left):
                break
        scores = held.pop(start) if start in held else _scores(states, table[start : start + width], height, width)  # (O, W)
        ahead = torch.zeros(len(scores), -(-scores.shape[1] // WORD) * WORD, dtype=torch.bool, device=scores.device)
        flags = ahead[:, : scores.shape[1]]
        if start + scores.shape[1] <= lowest:
            torch.ge(scores, of_target, out=flags)
        elif start > highest:
            torch.gt(scores, of_target, out=flags)
        else:
            below = torch.arange(start, start + scores.shape[1], device=scores.device) < targets[users, None]
            flags.copy_(torch.where(below, scores >= of_target, scores > of_target))
        ranks[users] += _count(ahead)
        if excluded is not None:
            inside = (excluded >= start) & (excluded < start + scores.shape[1])
            excluded_ahead += (flags.gather(1, (excluded - start).clamp(0, scores.shape[1] - 1)) & inside).sum(1)
    return ranks if excluded is None else torch.stack([ranks, ranks - excluded_ahead])


def _once(items: Tensor, none: int) -> Tensor:
    """Return each row's items, sorted, with repetitions replaced by `none`. (B, H) -> (B, H)"""
    items = items.sort(dim=1).values
    repeated = items[:, 1:] == items[:, :-1]
    return torch.cat([items[:, :1], items[:, 1:].masked_fill(repeated, none)], dim=1)


def _scores(states: Tensor, rows: Tensor, height: int, width: int) -> Tensor:
    """Return scores (B, W) of states (B, d) and rows (W, d), by products of `height` users and `width` items, padded by zeros."""
    columns = F.pad(rows, (0, 0, 0, width - len(rows))).T
    parts = F.pad(states, (0, 0, 0, -len(states) % height)).split(height)
    scores = states.new_empty(len(parts) * height, width)
    for part, out in zip(parts, scores.split(height), strict=True):
        torch.mm(part, columns, out=out)
    return scores[: len(states), : len(rows)]


def _count(flags: Tensor) -> Tensor:
    """Return the number of True values in every row. flags: (B, M) bool, M a multiple of WORD. Returns (B,) int64.

    Eight flags of a byte each are read as one 64-bit number. In a sum of up to NO_CARRY such numbers no byte overflows, so each
    byte is a count.
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
    beyond: int | None = None,
) -> np.ndarray:
    """Return the rank of every user's target, (U,) int64, computed in chunks of users that fit in memory.

    states_of: histories (B, L) -> states (B, d); table: (N, d); history: (U, L); targets: (U,). excluded: users (B,) -> items
    (B, H), N for none; with it the result is (2, U), and the second row ranks without these items.
    beyond: as in `target_ranks`.
    Users are sorted by target, because `target_ranks` is cheapest for targets that are close together.

    Raises UserError if a vector is not finite: no score is above NaN, so such a target would count as ranked first.
    """
    finite = torch.isfinite(table).all()
    ranks = targets.new_empty((2, len(targets)) if excluded else (len(targets),))
    for users in targets.argsort(stable=True).split(batch_size or USERS[table.device.type]):
        states = states_of(history[users])
        finite &= torch.isfinite(states).all()
        ranks[..., users] = target_ranks(states, table, targets[users], excluded(users) if excluded else None, beyond)
    if not finite:
        raise UserError("the model's vectors hold NaN or infinity; lower train.learning_rate or check the adapter's options")
    return ranks.cpu().numpy()
