"""What every loss is, and the similarity that all of them share."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8


class Loss:
    """What training minimises: a weighted sum over targets of the negative log-likelihood of the item that came next.

    `samples_negatives`: whether a target is compared with a few drawn items, or with the whole catalogue.
    """

    samples_negatives: ClassVar[bool]

    def __init__(self, temperature: float, negatives: int) -> None:
        self.temperature = temperature
        self.negatives = negatives

    def draw(self, targets: Tensor, n_items: int, generator: torch.Generator) -> Tensor | None:
        """What every target is compared with, (T, M) item ids; None for the whole catalogue. targets: (T,)."""
        return None

    def __call__(self, states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor | None, weights: Tensor) -> Tensor:
        """Weighted sum over targets, a scalar. states: (T, d); table: (N, d); targets, weights: (T,); negatives as drawn."""
        raise NotImplementedError


def normalised(vectors: Tensor) -> Tensor:
    """Rows divided by their Euclidean length (at least EPSILON), so that a dot product is a cosine."""
    return F.normalize(vectors, dim=-1, eps=EPSILON)
