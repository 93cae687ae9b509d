"""InfoNCE: every target against negatives of its own (AlphaFuse, Hu et al. 2025)."""

import torch
from torch import Tensor

from models.core.loss import EPSILON, Loss, normalised
from models.core.sampled import cosines


class InfoNCE(Loss):
    """-log softmax of cos / temperature over the target and `negatives` drawn items."""

    samples_negatives = True

    def draw(self, targets: Tensor, n_items: int, generator: torch.Generator) -> Tensor:
        return draw_negatives(targets, n_items, self.negatives, generator)

    def __call__(self, states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor | None, weights: Tensor) -> Tensor:
        assert negatives is not None
        return (info_nce(states, table, targets, negatives, self.temperature) * weights).sum()


def draw_negatives(targets: Tensor, n_items: int, n_negatives: int, generator: torch.Generator) -> Tensor:
    """Uniform negatives, never equal to their target. targets: (T,); returns (T, M) int64.

    Drawn from N - 1 values and moved up by one from the target on: exactly uniform over the other items, without redrawing.
    """
    draws = torch.randint(n_items - 1, (len(targets), n_negatives), generator=generator, device=targets.device)  # (T, M)
    return draws + (draws >= targets[:, None])


def info_nce(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """-log softmax of cos / temperature for every target, against its own negatives (methods of AlphaFuse).

    states: (T, d); table: (N, d); targets: (T,); negatives: (T, M) -> (T,). With equal logits it is ln(1 + M).
    """
    items = torch.cat([targets[:, None], negatives], dim=1)  # (T, 1 + M)
    logits = cosines(normalised(states), table, items, EPSILON) / temperature
    return logits.logsumexp(dim=1) - logits[:, 0]
