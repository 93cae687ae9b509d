"""The best k items of every user, exactly as float64 scores order them, found by float32 products."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.params import Similarity

USERS, ITEMS = 1024, 4096  # whose scores are in memory together: 16 MiB
GROUP = 64  # items of which only the highest score is compared with what a user already has
SLACK = 16  # candidates beyond k that are kept until float64 decides
EPSILON = 1e-8  # length of the shortest row that is normalised, as in training


class Catalogue:
    """The rows that are ranked, (N, d), prepared once for many users.

    table: (N, d) float32, the item table T. Scores are dot products of a user's state with the rows, which are divided by their
    length for `cosine`.
    """

    def __init__(self, table: Tensor, similarity: Similarity) -> None:
        self.table = table
        self.cosine = similarity == "cosine"
        self.rows = torch.cat([self.exact_rows(part).float() for part in torch.arange(len(table)).split(ITEMS)])  # (N, d)
        longest = torch.linalg.vector_norm(self.rows, dim=1).max()
        # Of a float32 product of length d, and of the rounded row: |error| <= (d + 2) 2^-24 |state| |row|, with some room.
        self.error = (table.shape[1] + 8) * 2.0**-24 * float(longest)

    def __len__(self) -> int:
        return len(self.table)

    def exact_rows(self, items: Tensor) -> Tensor:
        """The rows of some items in float64. (…,) ids -> (…, d)"""
        rows = self.table[items].double()
        if not self.cosine:
            return rows
        return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp(min=EPSILON)

    def exact_scores(self, states: Tensor, items: Tensor) -> Tensor:
        """Scores in float64. states: (B, d); items: (B, C) ids. Returns (B, C). Equal rows have equal scores."""
        return (self.exact_rows(items) * states.double().unsqueeze(1)).sum(-1)


def best_items(
    states: Tensor, catalogue: Catalogue, k: int, excluded: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k items with the highest scores of every user, best first, and their scores. (U, k) int64 and float64.

    states: (U, d); excluded: for every user the items that are left out. Scores are compared in float64, and ties go to the lower
    index. Where a user has fewer than k items to choose from, the rest are -1 with a score of -inf.

    Memory is bounded by USERS x ITEMS scores and the result:

    1. Scores of a block of items are computed in float32. Of every GROUP items only the highest is compared with the user's k-th
       best so far; most groups end there.
    2. What is higher than that, less twice the rounding error, is a candidate. The best k + SLACK candidates are kept.
    3. The candidates' scores are computed in float64 and sorted. A user with so many near ties that a candidate may have been
       dropped is ranked in float64 throughout.
    """
    items, scores = np.empty((len(states), k), dtype=np.int64), np.empty((len(states), k))
    for start in range(0, len(states), USERS):
        block = slice(start, start + USERS)
        items[block], scores[block] = _best_of_block(states[block], catalogue, k, excluded[block] if excluded else None)
    return items, scores


def _best_of_block(
    states: Tensor, catalogue: Catalogue, k: int, excluded: Sequence[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    n_items, users = len(catalogue), len(states)
    margin = 2 * catalogue.error * torch.linalg.vector_norm(states, dim=1, keepdim=True)  # (B, 1)
    hidden = _Pairs(excluded)
    kept = min(k + SLACK, n_items)
    values = states.new_full((users, kept), -torch.inf)
    items = torch.full((users, kept), -1)
    buffer = states.new_empty(users, -(-min(ITEMS, n_items) // GROUP) * GROUP)
    for start in range(0, n_items, ITEMS):
        rows = catalogue.rows[start : start + ITEMS]
        scores = buffer[:, : -(-len(rows) // GROUP) * GROUP]
        torch.mm(states, rows.T, out=scores[:, : len(rows)])
        scores[:, len(rows) :] = -torch.inf
        user, item = hidden.between(start, start + len(rows))
        scores[user, item - start] = -torch.inf
        if start == 0 and kept <= len(rows):
            values, items = scores.topk(kept, dim=1)
            items = items.masked_fill(values == -torch.inf, -1)
        else:
            least = (values[:, min(k, kept) - 1 : min(k, kept)] - margin).clamp(min=torch.finfo().min)  # (B, 1); above -inf
            values, items = _merge(values, items, scores, least, start)
    scores64 = catalogue.exact_scores(states, items.clamp(min=0)).masked_fill(items < 0, -torch.inf)
    order = items.masked_fill(items < 0, n_items).argsort(dim=1)  # the lower index first, then by score
    scores64, items = scores64.gather(1, order), items.gather(1, order)
    order = scores64.argsort(dim=1, descending=True, stable=True)[:, :k]
    scores64, items = _wide(scores64.gather(1, order), k, -torch.inf), _wide(items.gather(1, order), k, -1)
    if kept < n_items:  # a candidate may have been dropped where the last one kept is as good as the k-th
        crowded = (values[:, -1] >= (values[:, k - 1 : k] - margin).squeeze(1)) & values[:, -1].isfinite()
        for user in crowded.nonzero().squeeze(1).tolist():
            items[user], scores64[user] = _exhaustive(states[user], catalogue, k, excluded[user] if excluded else None)
    return items.numpy(), scores64.numpy()


def _merge(values: Tensor, items: Tensor, scores: Tensor, least: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Merge a block's scores of at least `least` (B, 1) into what is kept, (B, K) each. scores: (B, W); start: the first item."""
    kept = values.shape[1]
    user, group = (scores.unflatten(1, (-1, GROUP)).amax(2) >= least).nonzero(as_tuple=True)
    chosen = scores.unflatten(1, (-1, GROUP))[user, group]  # (H, GROUP)
    hit, within = (chosen >= least[user]).nonzero(as_tuple=True)
    if not len(hit):
        return values, items
    user, item, value = user[hit], start + group[hit] * GROUP + within, chosen[hit, within]
    counts = user.bincount(minlength=len(values))
    place = torch.arange(len(user)) - (counts.cumsum(0) - counts)[user]  # of a hit among its user's
    new_values = values.new_full((len(values), int(counts.max())), -torch.inf)
    new_items = items.new_full(new_values.shape, -1)
    new_values[user, place], new_items[user, place] = value, item
    values, chosen_from = torch.cat([values, new_values], 1).topk(kept, dim=1)
    return values, torch.cat([items, new_items], 1).gather(1, chosen_from)


def _exhaustive(state: Tensor, catalogue: Catalogue, k: int, excluded: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """One user's k best by float64 scores of all items. state: (d,)"""
    items, scores = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    hidden = torch.from_numpy(excluded) if excluded is not None else items
    for block in torch.arange(len(catalogue)).split(ITEMS):
        of_block = catalogue.exact_scores(state[None], block[None])[0].masked_fill(torch.isin(block, hidden), -torch.inf)
        scores, items = torch.cat([scores, of_block]), torch.cat([items, block])
        order = scores.argsort(descending=True, stable=True)[:k]  # what is kept has lower indices than the next block
        scores, items = scores[order], items[order]
    return items.masked_fill(scores == -torch.inf, -1), scores


def _wide(values: Tensor, k: int, filler: float) -> Tensor:
    """(B, C) -> (B, k), C <= k: filled up at the end."""
    return torch.nn.functional.pad(values, (0, k - values.shape[1]), value=filler)


class _Pairs:
    """Users and the items that are left out for them, by item."""

    def __init__(self, excluded: Sequence[np.ndarray] | None) -> None:
        excluded = excluded or [np.empty(0, dtype=np.int64)]
        users = np.repeat(np.arange(len(excluded)), [len(items) for items in excluded])
        items = np.concatenate(excluded).astype(np.int64)
        order = items.argsort(kind="stable")
        self.users, self.items = users[order], items[order]

    def between(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        first, last = np.searchsorted(self.items, [start, stop])
        return torch.from_numpy(self.users[first:last]), torch.from_numpy(self.items[first:last])
