"""Similarity and loss, the same for every method."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.sampled import products

EPSILON = 1e-8


def normalised(vectors: Tensor) -> Tensor:
    """Rows divided by their Euclidean length (at least EPSILON), so that a dot product is a cosine."""
    return F.normalize(vectors, dim=-1, eps=EPSILON)


def draw_negatives(targets: Tensor, n_items: int, n_negatives: int, generator: torch.Generator) -> Tensor:
    """Uniform negatives, never equal to their target. targets: (T,); returns (T, M) int64.

    Drawn from N - 1 values and moved up by one from the target on: exactly uniform over the other items, without redrawing.
    """
    draws = torch.randint(n_items - 1, (len(targets), n_negatives), generator=generator, device=targets.device)  # (T, M)
    return draws + (draws >= targets[:, None])


def cosines(states: Tensor, table: Tensor, items: Tensor) -> Tensor:
    """Cosine of every state with its own items. states: (T, d); table: (N, d); items: (T, M) -> (T, M).

    The table is not normalised first: its lengths are N numbers, its normalised copy and that copy's gradient N d each.
    """
    lengths = torch.linalg.vector_norm(table, dim=1).clamp(min=EPSILON)  # (N,)
    return products(normalised(states), table, items) / lengths.index_select(0, items.flatten()).view_as(items)


def info_nce(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """-log softmax of cos / temperature for every target, against its own negatives (methods of AlphaFuse).

    states: (T, d); table: (N, d); targets: (T,); negatives: (T, M) -> (T,). With equal logits it is ln(1 + M).
    """
    items = torch.cat([targets[:, None], negatives], dim=1)  # (T, 1 + M)
    logits = cosines(states, table, items) / temperature
    return logits.logsumexp(dim=1) - logits[:, 0]
