"""Metrics, compared with trec_eval, scikit-learn and examples by hand."""

import numpy as np
import polars as pl
import pytest
import pytrec_eval
import torch
from sklearn.metrics import ndcg_score

from pipeline.training.metrics import metric_names, metrics, metrics_by_ranking
from pipeline.training.ranking import rank_all, target_ranks
from tests.pipeline.training.conftest import sorted_ranks


def test_a_model_that_scores_the_target_highest_is_perfect() -> None:
    table = torch.eye(30)
    targets = torch.arange(30)
    figures = metrics(target_ranks(table, table, targets).numpy(), [10, 20])
    assert set(figures.values()) == {1.0}


def test_random_scores_hit_at_20_with_probability_20_over_n(generator: torch.Generator) -> None:
    states, table = torch.randn(20_000, 16, generator=generator), torch.randn(100, 16, generator=generator)
    targets = torch.randint(100, (20_000,), generator=generator)
    ranks = target_ranks(states, table, targets).numpy()
    assert metrics(ranks, [20])["HR@20"] == pytest.approx(0.2, abs=0.01)


def test_metrics_are_those_of_trec_eval() -> None:
    """Scores without ties, compared with NIST's trec_eval."""
    torch.manual_seed(0)
    states, table = torch.randn(200, 16), torch.randn(80, 16)
    targets = torch.randint(80, (200,))
    scores = (states @ table.T).double().numpy()
    assert all(len(set(row)) == 80 for row in scores.astype(np.float32))
    relevant = {str(u): {str(int(t)): 1} for u, t in enumerate(targets)}
    run = {str(u): {str(i): float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)}
    judged = pytrec_eval.RelevanceEvaluator(relevant, {"success.10,20", "ndcg_cut.10,20", "recip_rank"}).evaluate(run).values()
    found = metrics(target_ranks(states, table, targets).numpy(), [10, 20])
    names = {
        "success_10": "HR@10",
        "success_20": "HR@20",
        "ndcg_cut_10": "NDCG@10",
        "ndcg_cut_20": "NDCG@20",
        "recip_rank": "MRR",
    }
    for name_in_reference, name in names.items():
        assert found[name] == pytest.approx(np.mean([user[name_in_reference] for user in judged]), abs=1e-12)


def test_metrics_by_hand() -> None:
    found = metrics(np.array([1, 3, 10, 11, 20, 21]), [10, 20])
    assert found == pytest.approx(
        {
            "HR@10": 3 / 6,
            "HR@20": 5 / 6,
            "NDCG@10": (1 + 1 / 2 + 1 / np.log2(11)) / 6,
            "NDCG@20": (1 + 1 / 2 + 1 / np.log2(11) + 1 / np.log2(12) + 1 / np.log2(21)) / 6,
            "MRR": (1 + 1 / 3 + 1 / 10 + 1 / 11 + 1 / 20 + 1 / 21) / 6,
        },
        abs=1e-15,
    )
    assert list(found) == metric_names([10, 20])


@pytest.mark.parametrize("cutoff", [1, 5, 10, 20])
def test_ndcg_is_scikit_learns(cutoff: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(200, 40))
    targets = rng.integers(40, size=200)
    relevance = np.zeros_like(scores)
    relevance[np.arange(200), targets] = 1
    measured = metrics(sorted_ranks(scores, targets), [cutoff])
    assert measured[f"NDCG@{cutoff}"] == pytest.approx(ndcg_score(relevance, scores, k=cutoff), abs=1e-12)
    top = np.argsort(-scores, axis=1)[:, :cutoff]
    assert measured[f"HR@{cutoff}"] == pytest.approx((top == targets[:, None]).any(1).mean(), abs=1e-12)


def test_a_perfect_model_scores_one_and_the_worst_nothing() -> None:
    table = torch.eye(50)
    targets = torch.arange(50)
    best = rank_all(lambda h: table[h[:, 0]], table, targets[:, None], targets)
    assert set(metrics(best, [10, 20]).values()) == {1.0}
    worst = metrics(rank_all(lambda h: -table[h[:, 0]], table, targets[:, None], targets), [10, 20])
    assert worst == {"HR@10": 0, "HR@20": 0, "NDCG@10": 0, "NDCG@20": 0, "MRR": 1 / 50}


def test_random_scores_hit_as_often_as_chance() -> None:
    torch.manual_seed(0)
    n_items, users = 500, 4000
    table, states = torch.randn(n_items, 16), torch.randn(users, 16)
    ranks = rank_all(lambda h: states[h[:, 0]], table, torch.arange(users)[:, None], torch.randint(n_items, (users,)))
    chance = 20 / n_items
    assert metrics(ranks, [20])["HR@20"] == pytest.approx(chance, abs=4 * (chance * (1 - chance) / users) ** 0.5)
    assert ranks.mean() == pytest.approx((n_items + 1) / 2, rel=0.05)


def test_metrics_of_every_ranking_have_clear_names_and_the_chosen_one_comes_first() -> None:
    ranks = pl.DataFrame({"user_id": ["a", "b"], "rank": [4, 30], "rank_without_history": [2, 21], "rank_dot": [1, 1]})
    found = metrics_by_ranking(ranks, [20], exclude_history=False)
    assert list(found) == ["", "without_history", "dot"]
    assert [values["MRR"] for values in found.values()] == pytest.approx([(1 / 4 + 1 / 30) / 2, (1 / 2 + 1 / 21) / 2, 1])
    turned = metrics_by_ranking(ranks, [20], exclude_history=True)
    assert turned == {"": found["without_history"], "with_history": found[""], "dot": found["dot"]}
    assert list(metrics_by_ranking(ranks.select("user_id", "rank"), [20], exclude_history=False)) == [""], "as published before"
