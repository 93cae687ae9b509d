"""Cross-entropy: compares every target with the whole catalogue."""

from typing import Any

import torch
from torch import Tensor

from models.core.loss import Loss, normalised

LOGITS_AT_ONCE = 4_000_000  # floats of one chunk of the full softmax, chosen to fit into a CPU cache


class CrossEntropy(Loss):
    """The sum over targets t of weight_t (-log softmax(cos / temperature)_t), with the softmax over all N items."""

    samples_negatives = False

    def __call__(self, states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor | None, weights: Tensor) -> Tensor:
        return cross_entropy(states, table, targets, weights, self.temperature)


def cross_entropy(states: Tensor, table: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Return the weighted sum over targets of -log softmax(cos / temperature), with the softmax over all items; a scalar.

    states: (T, d); table: (N, d); targets, weights: (T,). With equal logits and weights 1 / T, the loss is ln N.

    Logits are computed for a few targets at a time and not stored. The gradient is therefore computed together with the loss.
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
                # The gradient of the logits: the weighted softmax, minus the weight at the target.
                slope = logits.sub_(total).exp_().mul_(weight)
                if slope.is_cuda:  # a deterministic scatter reads indices on the host, which a CUDA graph cannot
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
