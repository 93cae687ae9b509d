"""The base class of losses, and the normalisation that all of them share."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8


class Loss:
    """A weighted sum over targets of the negative log-likelihood of the next item.

    temperature: the divisor of cosines. negatives: M, how many items are drawn for each target, if any.
    `samples_negatives`: whether a target is compared with M drawn items, or with the whole catalogue.
    """

    samples_negatives: ClassVar[bool]

    def __init__(self, temperature: float, negatives: int) -> None:
        self.temperature = temperature
        self.negatives = negatives

    def draw(self, targets: Tensor, n_items: int, generator: torch.Generator) -> Tensor | None:
        """Return the items that each target is compared with, (T, M) int64; None for the whole catalogue. targets: (T,)."""
        return None

    def __call__(self, states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor | None, weights: Tensor) -> Tensor:
        """Return the loss, a scalar. states: (T, d); table: (N, d); targets, weights: (T,); negatives: as `draw` returned.

        In a large catalogue, table has the rows of a batch only, and targets and negatives are rows of it.
        """
        raise NotImplementedError


def normalised(vectors: Tensor) -> Tensor:
    """Return rows divided by their Euclidean length (at least EPSILON), so that dot products are cosines. (…, d) -> (…, d)"""
    return F.normalize(vectors, dim=-1, eps=EPSILON)
