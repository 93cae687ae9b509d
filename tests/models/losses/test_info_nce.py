"""InfoNCE, compared with closed forms and float64 arithmetic."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.nn.functional import cross_entropy

from models.core.loss import normalised
from models.losses.info_nce import draw_negatives, info_nce


def test_negatives_are_uniform_over_the_other_items_and_never_the_target(generator: torch.Generator) -> None:
    n_items = 20
    for target in (0, 7, 19):
        draws = draw_negatives(torch.full((2000,), target), n_items, 64, generator)
        counts = torch.bincount(draws.flatten(), minlength=n_items).numpy()
        assert counts[target] == 0
        assert chisquare(np.delete(counts, target)).pvalue > 1e-3


def test_every_target_has_negatives_of_its_own(generator: torch.Generator) -> None:
    draws = draw_negatives(torch.arange(50), 10_000, 64, generator)
    assert draws.shape == (50, 64)
    assert not torch.equal(draws[0], draws[1])


def test_equal_logits_cost_the_logarithm_of_65(generator: torch.Generator) -> None:
    table = torch.ones(100, 8)
    targets = torch.arange(10)
    found = info_nce(table[:10], table, targets, draw_negatives(targets, 100, 64, generator), 0.07)
    np.testing.assert_allclose(found, math.log(65), atol=1e-5)
    assert float(found[0]) == pytest.approx(4.174, abs=1e-3)


def test_loss_is_cross_entropy_of_cosines(generator: torch.Generator) -> None:
    """Compared with a float64 computation; duplicates among the negatives count twice."""
    states, table = torch.randn(7, 8, generator=generator), 3 * torch.randn(30, 8, generator=generator)
    targets = torch.randint(30, (7,), generator=generator)
    negatives = draw_negatives(targets, 30, 64, generator)
    expected = []
    for state, target, others in zip(states.double(), targets, negatives, strict=True):
        rows = table.double()[[int(target), *others.tolist()]].numpy()
        cosines = rows @ state.numpy() / np.linalg.norm(rows, axis=1) / np.linalg.norm(state.numpy()) / 0.07
        expected.append(-cosines[0] + np.log(np.exp(cosines).sum()))
    np.testing.assert_allclose(info_nce(states, table, targets, negatives, 0.07), expected, rtol=1e-5)


def test_gradients_of_the_loss_are_those_of_a_dense_one(generator: torch.Generator) -> None:
    states, table = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (7, 30))
    targets = torch.randint(30, (7,), generator=generator)
    negatives = draw_negatives(targets, 30, 64, generator)
    items = torch.cat([targets[:, None], negatives], dim=1)
    dense = (normalised(states) @ normalised(table).T / 0.07).gather(1, items)
    expected = torch.autograd.grad(cross_entropy(dense, torch.zeros_like(targets), reduction="sum"), (states, table))
    found = torch.autograd.grad(info_nce(states, table, targets, negatives, 0.07).sum(), (states, table))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
