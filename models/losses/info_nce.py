"""InfoNCE: compares every target with its own negatives (as in AlphaFuse, Hu et al. 2025)."""

import torch
from torch import Tensor

from models.core.loss import EPSILON, Loss, normalised
from models.core.sampled import cosines


class InfoNCE(Loss):
    """The sum over targets of weight_t (-log softmax(cos / temperature)_t), over the target and `negatives` sampled items."""

    samples_negatives = True

    def draw(self, targets: Tensor, n_items: int, generator: torch.Generator) -> Tensor:
        return draw_negatives(targets, n_items, self.negatives, generator)

    def __call__(self, states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor | None, weights: Tensor) -> Tensor:
        assert negatives is not None
        return (info_nce(states, table, targets, negatives, self.temperature) * weights).sum()


def draw_negatives(targets: Tensor, n_items: int, n_negatives: int, generator: torch.Generator) -> Tensor:
    """Return negatives that are uniform over all items except the target. targets: (T,). Returns (T, M) int64.

    Draws from N - 1 values, and adds 1 to those that are not below the target. This is exactly uniform, without rejections.
    """
    draws = torch.randint(n_items - 1, (len(targets), n_negatives), generator=generator, device=targets.device)  # (T, M)
    return draws + (draws >= targets[:, None])


def info_nce(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return -log softmax(cos / temperature) of every target among itself and its negatives, (T,).

    states: (T, d); table: (N, d); targets: (T,); negatives: (T, M). With equal logits, the loss is ln(1 + M).
    """
    items = torch.cat([targets[:, None], negatives], dim=1)  # (T, 1 + M)
    logits = cosines(normalised(states), table, items, EPSILON) / temperature
    return logits.logsumexp(dim=1) - logits[:, 0]
