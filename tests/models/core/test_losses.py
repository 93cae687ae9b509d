"""Negatives, losses and ranks, compared with counts, closed forms and float64."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.nn.functional import cross_entropy

from models.core.loss import normalised
from models.losses import cross_entropy as full_softmax
from models.losses.info_nce import draw_negatives, info_nce
from pipeline.training.metrics import metrics
from pipeline.training.ranking import rank_all, target_ranks


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


def test_a_zero_vector_has_cosine_zero_and_no_nan() -> None:
    zero = torch.zeros(1, 4, requires_grad=True)
    (normalised(zero) @ torch.ones(4, 1)).sum().backward()
    assert zero.grad.isfinite().all()
    assert not normalised(zero).any()


# Ranks


def test_a_model_that_scores_the_target_highest_is_perfect() -> None:
    table = torch.eye(30)
    targets = torch.arange(30)
    figures = metrics(target_ranks(table, table, targets).numpy(), [10, 20])
    assert set(figures.values()) == {1.0}


def test_equal_scores_rank_by_item_index() -> None:
    ranks = target_ranks(torch.ones(5, 2), torch.ones(9, 2), torch.tensor([0, 1, 4, 7, 8]))
    assert ranks.tolist() == [1, 2, 5, 8, 9]


def test_random_scores_hit_at_20_with_probability_20_over_n(generator: torch.Generator) -> None:
    states, table = torch.randn(20_000, 16, generator=generator), torch.randn(100, 16, generator=generator)
    targets = torch.randint(100, (20_000,), generator=generator)
    ranks = target_ranks(states, table, targets).numpy()
    assert metrics(ranks, [20])["HR@20"] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_ranks_do_not_depend_on_the_batch(generator: torch.Generator, batch_size: int) -> None:
    history, table = torch.randn(40, 8, generator=generator), torch.randn(50, 8, generator=generator)
    targets = torch.randint(50, (40,), generator=generator)
    scores = (history @ table.T).double().numpy()
    expected = [int((row > row[t]).sum()) + 1 for row, t in zip(scores, targets.tolist(), strict=True)]
    assert rank_all(lambda h: h, table, history, targets, batch_size).tolist() == expected
