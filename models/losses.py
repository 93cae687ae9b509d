"""Similarity and loss, the same for every method."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.sampled import cosines

EPSILON = 1e-8
LOGITS_AT_ONCE = 4_000_000  # floats of a chunk of the full softmax: what a cache holds


@dataclass(frozen=True)
class Objective:
    """What training minimises: a mean over targets of the negative log-likelihood of the item that came next.

    info_nce: against `negatives` items drawn for each target. cross_entropy: against the whole catalogue.
    """

    loss: Literal["info_nce", "cross_entropy"]
    temperature: float
    negatives: int

    def draw(self, targets: Tensor, n_items: int, generator: torch.Generator) -> Tensor | None:
        """What every target is compared with, (T, M) item ids; None for the whole catalogue. targets: (T,)."""
        return draw_negatives(targets, n_items, self.negatives, generator) if self.loss == "info_nce" else None

    def __call__(self, states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor | None, weights: Tensor) -> Tensor:
        """Weighted sum over targets, a scalar. states: (T, d); table: (N, d); targets, weights: (T,); negatives as drawn."""
        if negatives is None:
            return cross_entropy(states, table, targets, weights, self.temperature)
        return (info_nce(states, table, targets, negatives, self.temperature) * weights).sum()


def normalised(vectors: Tensor) -> Tensor:
    """Rows divided by their Euclidean length (at least EPSILON), so that a dot product is a cosine."""
    return F.normalize(vectors, dim=-1, eps=EPSILON)


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


def cross_entropy(states: Tensor, table: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Weighted sum over targets of -log softmax of cos / temperature over all items, a scalar.

    states: (T, d); table: (N, d); targets, weights: (T,). With equal logits and weights 1 / T it is ln N. Logits are made for a
    few targets at a time and never kept: the gradient is computed with the loss.
    """
    with torch.autocast(states.device.type, enabled=False):
        loss: Tensor = _CrossEntropy.apply(normalised(states.float()) / temperature, normalised(table.float()), targets, weights)
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        of_states, of_table = (torch.zeros_like(t) if wanted else None for t in (states, table))
        loss = states.new_zeros(())
        size = max(64, LOGITS_AT_ONCE // len(table))
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits = states[part] @ table.T  # (B, N)
            weight, target = weights[part].unsqueeze(1), targets[part].unsqueeze(1)
            of_target = logits.gather(1, target)
            total = logits.logsumexp(1, keepdim=True)
            loss += ((total - of_target) * weight).sum()
            if of_states is not None and of_table is not None:
                slope = logits.sub_(total).exp_().mul_(weight)  # softmax, weighted
                if slope.is_cuda:  # scattering in a fixed order looks at indices there, which a CUDA graph must not
                    slope -= weight * (torch.arange(len(table), device=slope.device) == target)
                else:
                    slope.scatter_add_(1, target, -weight.to(slope.dtype))
                of_states[part] = slope @ table
                of_table.addmm_(slope.T, states[part])
        ctx.save_for_backward(of_states, of_table)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        of_states, of_table = ctx.saved_tensors
        return of_states * gradient, of_table * gradient, None, None
