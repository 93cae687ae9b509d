"""Similarity and loss, the same for every method."""

import torch
from torch import Tensor
from torch.nn import functional as F

DENSE_ITEMS = 6_000  # up to here one GEMM against every item beats gathering 65 rows a target (docs/performance.md)


def normalised(vectors: Tensor) -> Tensor:
    """Rows divided by their Euclidean length (at least 1e-8), so that a dot product is a cosine."""
    return F.normalize(vectors, dim=-1, eps=1e-8)


def draw_negatives(targets: Tensor, n_items: int, n_negatives: int, generator: torch.Generator) -> Tensor:
    """Uniform negatives, never equal to their target. targets: (T,); returns (T, M) int64.

    Drawn from N - 1 values and moved up by one from the target on: exactly uniform over the other items, without redrawing.
    """
    draws = torch.randint(n_items - 1, (len(targets), n_negatives), generator=generator, device=targets.device)  # (T, M)
    return draws + (draws >= targets[:, None])


def info_nce(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Mean over targets of -log softmax of cos / temperature, the target against its own negatives (methods of AlphaFuse).

    states: (T, d); table: (N, d), both L2-normalised; targets: (T,); negatives: (T, M). With equal logits it is ln(1 + M).
    """
    items = torch.cat([targets[:, None], negatives], dim=1)  # (T, 1 + M)
    if len(table) <= DENSE_ITEMS:
        logits = (states @ table.T).gather(1, items)  # (T, 1 + M)
    else:
        logits = torch.einsum("td,tmd->tm", states, F.embedding(items, table))
    logits = logits / temperature
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()
