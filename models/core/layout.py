"""Where the tokens of a batch stand; on a CPU there are rows for those only, so that padding costs nothing."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from models.core.sampled import products, weighted_sums


class Layout:
    """A batch of padded sequences, the rows (T, d) that a model computes, and attention between them.

    On a CPU there is a row for every place (B, P) that is no padding, in order, and attention touches pairs of rows. On a GPU
    there is a row for every place, T = B P, and attention is dense: shapes that do not depend on the data need no wait for the
    device, and arithmetic is cheap there. Attention weights are (T, h, P) in the first case, (B, h, P, P) in the second.
    """

    def __init__(self, present: Tensor, causal: bool, packed: bool | None = None) -> None:
        """present: (B, P), False at padding. `packed` overrides the device: whether padding has no rows."""
        self.present = present
        self.causal = causal
        self.packed = present.device.type == "cpu" if packed is None else packed
        cells = torch.arange(present.numel(), device=present.device)
        self.cells = cells[present.flatten()] if self.packed else cells  # (T,), of B P
        self.chosen: Tensor | None = None

    def select(self, wanted: Tensor) -> Layout:
        """The same batch, of which some rows alone ask: in a last block, those whose state is used. wanted: (T,), False if not.

        On a GPU the layout as it is: a choice would have a shape that depends on the data.
        """
        if not self.packed or bool(wanted.all()):
            return self
        narrow = Layout(self.present, self.causal, self.packed)
        narrow.chosen = wanted.nonzero().squeeze(1)
        narrow.cells = self.cells[narrow.chosen]
        return narrow

    def queries(self, rows: Tensor) -> Tensor:
        """Of the rows of a whole layout, (T, ...), those that ask in this one, (W, ...)."""
        return rows if self.chosen is None else rows.index_select(0, self.chosen)

    @property
    def position(self) -> Tensor:
        """(T,), 0..P-1."""
        return self.cells % self.present.shape[1]

    def rows(self, padded: Tensor) -> Tensor:
        """(B, P, ...) -> (T, ...)."""
        flat = padded.flatten(0, 1)
        return flat.index_select(0, self.cells) if self.packed else flat

    def padded(self, rows: Tensor) -> Tensor:
        """(T, d) -> (B, P, d), zero where there is no row."""
        if self.packed:
            rows = rows.new_zeros(self.present.numel(), rows.shape[1]).index_add(0, self.cells, rows)
        return rows.unflatten(0, self.present.shape)

    @cached_property
    def visible(self) -> Tensor:
        """True where the query (a row) may look at the key (a place of its sequence); shaped as weights of one head.

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
        """Products q k^T by head for every row and every place of its sequence, not scaled -> as weights.

        query: (T, d), or (W, d) where W rows ask; key: (T, d).
        """
        if self.packed:
            return products(_by_head(query, heads), _by_head(key, heads), self._keys(heads)).unflatten(0, (-1, heads))
        return self._split(query, heads) @ self._split(key, heads).transpose(-1, -2)

    def weighted_values(self, weights: Tensor, value: Tensor) -> Tensor:
        """Values weighted by head. weights: as `scores` made them; value: (T, d) -> (T, d), or (W, d) where W rows ask."""
        heads = weights.shape[1]
        if self.packed:
            return weighted_sums(weights.flatten(0, 1), _by_head(value, heads), self._keys(heads)).view(-1, value.shape[1])
        return (weights @ self._split(value, heads)).transpose(1, 2).flatten(2).flatten(0, 1)

    def by_distance(self, bias: Tensor) -> Tensor:
        """What a row's place minus a key's place selects from bias (2 P - 1,), 0 at P - 1; shaped as weights of one head."""
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
        """For every row and head the (row, head) of each place of its sequence, (T h, P); any where a place has no row."""
        row = (self.present.flatten().cumsum(0) - 1).clamp(min=0).view_as(self.present)  # (B, P)
        keys = row.index_select(0, self.cells // self.present.shape[1])  # (T, P)
        head = torch.arange(heads)[:, None]
        return (keys.unsqueeze(1) * heads + head).flatten(0, 1)


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """(T, d) -> (T h, d / h)"""
    return rows.reshape(len(rows) * heads, -1)
