"""The full softmax, compared with torch's."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.core.loss import normalised
from models.losses import cross_entropy as full_softmax


@pytest.mark.parametrize("chunk", [64 * 30, 10**6])
def test_full_softmax_and_its_gradients_are_torchs(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """In chunks of 64 targets and in one chunk; some targets have weight 0."""
    monkeypatch.setattr("models.losses.cross_entropy.LOGITS_AT_ONCE", chunk)
    states, table = (3 * torch.randn(n, 8, generator=generator) for n in (150, 30))
    targets = torch.randint(30, (150,), generator=generator)
    weights = (torch.arange(150) % 3 > 0) / 100
    leaves = [t.requires_grad_() for t in (states, table)]
    logits = normalised(states) @ normalised(table).T / 0.07
    expected = (cross_entropy(logits, targets, reduction="none") * weights).sum()
    found = full_softmax.cross_entropy(states, table, targets, weights, 0.07)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(2 * found, leaves), torch.autograd.grad(2 * expected, leaves), rtol=1e-4, atol=1e-6
    )


def test_full_softmax_of_equal_logits_costs_the_logarithm_of_n() -> None:
    table = torch.ones(100, 8)
    loss = full_softmax.cross_entropy(table[:10], table, torch.arange(10), torch.full((10,), 0.1), 0.07)
    assert loss.item() == pytest.approx(math.log(100), abs=1e-5)
