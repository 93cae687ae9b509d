"""The rows that a model computes for a batch of padded sequences, and attention between these rows.

On a CPU, only real tokens have a row, so padding costs nothing.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from models.core.sampled import products, weighted_sums


class Layout:
    """The positions (B, P) of a batch, the rows (T, d) that a model computes for them, and attention between these rows.

    Packed (on a CPU): every position that is not padding has a row, in order of sequence and position. Attention weights are
    (T, h, P). Dense (on a GPU): every position has a row, T = B P, and attention weights are (B, h, P, P). Dense shapes do not
    depend on the data, so no step waits for the device to learn a shape.

    Example, packed: two sequences of at most three tokens, the first padded on the left. Five rows exist for six positions.

    >>> layout = Layout(torch.tensor([[False, True, True], [True, True, True]]), causal=True, packed=True)
    >>> layout.cells  # the position of every row, counted over the whole batch; 0 is padding and has no row
    tensor([1, 2, 3, 4, 5])
    >>> layout.position  # the same, counted inside the sequence
    tensor([1, 2, 0, 1, 2])
    >>> layout.rows(torch.tensor([[9, 10, 11], [12, 13, 14]]))  # of padded values, those of the rows
    tensor([10, 11, 12, 13, 14])

    Every row sees its own position and the earlier tokens of its sequence:

    >>> layout.visible.squeeze(1).int()
    tensor([[0, 1, 0],
            [0, 1, 1],
            [1, 0, 0],
            [1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)

    A loss that needs only the last state of each sequence selects two query rows. Keys and values are still all five rows:

    >>> last = layout.select(layout.position == 2)
    >>> last.queries(torch.tensor([10, 11, 12, 13, 14]))
    tensor([11, 14])
    >>> last.visible.squeeze(1).int()
    tensor([[0, 1, 1],
            [1, 1, 1]], dtype=torch.int32)
    """

    def __init__(self, present: Tensor, causal: bool, packed: bool | None = None) -> None:
        """present: (B, P) bool, False at padding. causal: a row sees no later positions. packed: by default, True on a CPU."""
        self.present = present
        self.causal = causal
        self.packed = present.device.type == "cpu" if packed is None else packed
        cells = torch.arange(present.numel(), device=present.device)
        self.cells = cells[present.flatten()] if self.packed else cells  # (T,), of B P
        self.chosen: Tensor | None = None

    def select(self, wanted: Tensor) -> Layout:
        """Return the layout whose query rows are the wanted ones. In the last block, these are the rows whose states are used.

        wanted: (T,) bool. A dense layout is returned as it is, because a selection has a shape that depends on the data.
        """
        if not self.packed or bool(wanted.all()):
            return self
        narrow = Layout(self.present, self.causal, self.packed)
        narrow.chosen = wanted.nonzero().squeeze(1)
        narrow.cells = self.cells[narrow.chosen]
        return narrow

    def queries(self, rows: Tensor) -> Tensor:
        """Select the query rows of this layout, (W, ...), from the rows of the whole layout, (T, ...)."""
        return rows if self.chosen is None else rows.index_select(0, self.chosen)

    @property
    def position(self) -> Tensor:
        """The position of every row inside its sequence, (T,) int64, 0 to P - 1."""
        return self.cells % self.present.shape[1]

    def rows(self, padded: Tensor) -> Tensor:
        """Take the values of the rows from padded values. (B, P, ...) -> (T, ...)"""
        flat = padded.flatten(0, 1)
        return flat.index_select(0, self.cells) if self.packed else flat

    def padded(self, rows: Tensor) -> Tensor:
        """Put rows back at their positions; zero where there is no row. (T, d) -> (B, P, d)"""
        if self.packed:
            rows = rows.new_zeros(self.present.numel(), rows.shape[1]).index_add(0, self.cells, rows)
        return rows.unflatten(0, self.present.shape)

    @cached_property
    def visible(self) -> Tensor:
        """True where a query row sees a position of its sequence; (T, 1, P) packed, (B, 1, P, P) dense.

        A query always sees itself: a row without any key would turn the softmax into NaN.
        """
        size = self.present.shape[1]
        keys = torch.arange(size, device=self.present.device)
        queries = self.position.unsqueeze(1)  # (T, 1)
        shown = self.present.index_select(0, self.cells // size)  # (T, P)
        if self.causal:
            shown = shown & (keys <= queries)
        return self._as_weights((shown | (keys == queries)).unsqueeze(1))

    def scores(self, query: Tensor, key: Tensor, heads: int) -> Tensor:
        """Return q k^T per head, unscaled, between every query row and every position of its sequence.

        query: (T, d), or (W, d) for W selected rows; key: (T, d). Returns (T or W, h, P) packed, (B, h, P, P) dense.
        """
        if self.packed:
            scores = products(_by_head(query, heads), _by_head(key, heads), self._keys(heads))  # (T h, P)
            return scores.unflatten(0, (len(query), heads))
        return self._split(query, heads) @ self._split(key, heads).transpose(-1, -2)

    def weighted_values(self, weights: Tensor, value: Tensor) -> Tensor:
        """Return the weighted sums of values, per head. weights: shaped as `scores`; value: (T, d). Returns (T, d) or (W, d)."""
        heads = weights.shape[1]
        if self.packed:
            sums = weighted_sums(weights.flatten(0, 1), _by_head(value, heads), self._keys(heads))  # (T h, d / h)
            return sums.view(len(weights), value.shape[1])
        return (weights @ self._split(value, heads)).transpose(1, 2).flatten(2).flatten(0, 1)

    def by_distance(self, bias: Tensor) -> Tensor:
        """Return bias[query position - key position + P - 1], shaped as the weights of one head. bias: (2 P - 1,)."""
        size = self.present.shape[1]
        keys = torch.arange(size, device=bias.device)
        return self._as_weights(bias[self.position.unsqueeze(1) - keys + size - 1].unsqueeze(1))

    def _as_weights(self, of_rows: Tensor) -> Tensor:
        """(T, 1, P) -> (T, 1, P) or (B, 1, P, P)."""
        return of_rows if self.packed else of_rows.unflatten(0, self.present.shape).transpose(1, 2)

    def _split(self, rows: Tensor, heads: int) -> Tensor:
        """(B P, d) -> (B, h, P, d / h)"""
        return rows.unflatten(0, self.present.shape).unflatten(-1, (heads, -1)).transpose(1, 2)

    def _keys(self, heads: int) -> Tensor:
        """Return, for every pair (row, head), the indices of its sequence's positions among all such pairs. (T h, P) int64

        A position without a row gets the index of some other row, which `visible` masks.
        """
        row = (self.present.flatten().cumsum(0) - 1).clamp(min=0).view_as(self.present)  # (B, P)
        keys = row.index_select(0, self.cells // self.present.shape[1])  # (T, P)
        head = torch.arange(heads)[:, None]
        return (keys.unsqueeze(1) * heads + head).flatten(0, 1)


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """(T, d) -> (T h, d / h)"""
    return rows.reshape(len(rows) * heads, rows.shape[1] // heads)
