"""Significance tests, compared with scipy, closed forms and simulations under the null hypothesis."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, permutation_test

from pipeline.report.significance import gain_intervals, holm, improvement_intervals, sign_flip_p_values


def test_p_values_are_scipys_paired_permutation_test() -> None:
    rng = np.random.default_rng(1)
    leader, other = rng.normal(0.2, 1, 60), rng.normal(0, 1, 60)
    expected = permutation_test(
        (leader, other), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", n_resamples=20_000, rng=2
    ).pvalue
    found = sign_flip_p_values((leader - other)[:, None], permutations=20_000)
    assert found[0] == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 10_000))


def test_a_few_users_have_the_exact_p_value() -> None:
    """With five differences of the same sign, two of the 32 sign vectors are as extreme."""
    assert sign_flip_p_values(np.ones((5, 1)), permutations=100_000)[0] == pytest.approx(2 / 32, abs=0.004)


def test_no_difference_at_all_has_p_one() -> None:
    assert sign_flip_p_values(np.zeros((50, 2))).tolist() == [1, 1]


def test_columns_are_tested_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(0).normal([0, 0.3, -0.3], 1, (200, 3))
    together = sign_flip_p_values(differences)
    assert [sign_flip_p_values(differences[:, [c]])[0] for c in range(3)] == together.tolist()
    monkeypatch.setattr("pipeline.report.significance.CHUNK", 200 * 7)
    np.testing.assert_allclose(sign_flip_p_values(differences), together, atol=0.02)


def test_under_no_difference_five_percent_are_rejected() -> None:
    """2,000 comparisons of two equally good methods. For hits, fewer are rejected, because their sums have few values."""
    rng = np.random.default_rng(3)
    hits = rng.random((2, 400, 2000)) < 0.15
    ndcg = hits / np.log2(1 + rng.integers(1, 21, hits.shape))
    rejected = [(sign_flip_p_values(one - other, permutations=2_000) <= 0.05).mean() for one, other in (ndcg, hits.astype(float))]
    assert rejected[0] == pytest.approx(0.05, abs=0.01)
    assert rejected[1] <= rejected[0]


def test_holm_is_the_step_down_procedure() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])).tolist() == [1, 1]
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1], "no p-value is above 1"
    p_values = np.random.default_rng(0).random(8) ** 3
    adjusted = holm(p_values)
    assert (adjusted >= p_values).all()
    assert (np.diff(adjusted[np.argsort(p_values)]) >= 0).all()
    assert (adjusted >= false_discovery_control(p_values)).all(), "stricter than the false discovery rate"


@pytest.mark.slow
def test_with_the_leader_chosen_by_the_tested_figures_an_equal_adapter_is_below_it_more_often() -> None:
    """Of ten equal adapters, at least one is called below the leader in 12 % of the trials (docs/results.md), not in 5 %."""
    rng = np.random.default_rng(0)
    trials = 400
    rejected = 0
    for _ in range(trials):
        hits = rng.random((400, 10)) < 0.15
        ndcg = hits / np.log2(1 + rng.integers(1, 21, hits.shape))
        leader = int(ndcg.mean(0).argmax())
        p_values = sign_flip_p_values(ndcg[:, [leader]] - np.delete(ndcg, leader, axis=1), permutations=2_000)
        rejected += bool((holm(p_values) < 0.05).any())
    assert rejected / trials == pytest.approx(0.12, abs=0.05)


def test_the_interval_covers_the_true_improvement_as_often_as_it_says() -> None:
    """Log-normal metrics whose means differ by 10 %: 90 % intervals for 300 samples of 200 users."""
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        common = rng.lognormal(0, 0.5, 200)
        leader, other = 1.1 * common * rng.lognormal(0, 0.2, 200), common * rng.lognormal(0, 0.2, 200)
        ((low, high),) = improvement_intervals(leader, other[:, None], level=0.9, seed=trial, resamples=400)
        covered += low <= 0.1 <= high
    assert covered / 300 == pytest.approx(0.9, abs=0.05)


def test_a_baseline_that_hardly_or_never_hits_does_no_harm() -> None:
    rarely, never = improvement_intervals(np.ones(20), np.c_[np.r_[np.ones(1), np.zeros(19)], np.zeros(20)], resamples=200)
    assert 0 < rarely[0] <= rarely[1]
    assert np.isnan(never).all()


def test_one_user_says_nothing_of_chance_in_the_users() -> None:
    ours, others = np.array([0.5]), np.array([[0.4]])
    assert np.isnan(improvement_intervals(ours, others)).all()
    assert np.isnan(gain_intervals(others, ours)).all()
    assert np.isfinite(improvement_intervals(np.array([0.5, 0.6]), np.array([[0.4], [0.3]]))).all()


def test_users_of_one_dataset_are_resampled_together() -> None:
    """If metrics are equal within each dataset, the interval has no width, however much the datasets differ."""
    strata = np.repeat([0, 1], [30, 10])
    leader, other = np.where(strata == 0, 2.0, 5.0), np.where(strata == 0, 1.0, 7.0)
    exact = leader.mean() / other.mean() - 1
    np.testing.assert_allclose(improvement_intervals(leader, other[:, None], strata, resamples=50), [[exact, exact]])
    ((low, high),) = improvement_intervals(leader, other[:, None], resamples=50)
    assert low < exact < high


def test_the_gain_of_each_method_is_its_improvement_over_the_base() -> None:
    rng = np.random.default_rng(4)
    methods, base, strata = rng.random((40, 3)), rng.random(40), np.repeat([0, 1], [25, 15])
    expected = [improvement_intervals(method, base[:, None], strata)[0] for method in methods.T]
    np.testing.assert_allclose(gain_intervals(methods, base, strata), expected, atol=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_interval_has_the_quantiles_of_resampled_users(level: float) -> None:
    """The same draws, as users and not as counts of users."""
    rng = np.random.default_rng(7)
    leader, other = rng.random(40), rng.random(40)
    draws = np.random.default_rng(3).integers(0, 40, (300, 40))
    resampled = [leader[users].sum() / other[users].sum() - 1 for users in draws]
    tail = (1 - level) / 2
    found = improvement_intervals(leader, other[:, None], level=level, seed=3, resamples=300)
    np.testing.assert_allclose(found, [np.quantile(resampled, [tail, 1 - tail])], rtol=1e-12)


def test_what_the_report_says_of_its_tests_is_their_default() -> None:
    """10,000 permutations, 2,000 resamples and 95 %, always with the same draws."""
    differences = np.random.default_rng(0).normal(0.1, 1, (30, 1))
    assert sign_flip_p_values(np.ones((40, 1)))[0] == 1 / 10_001
    assert sign_flip_p_values(differences) == sign_flip_p_values(differences, seed=0, permutations=10_000)
    given = np.random.default_rng(0).random((2, 30))
    expected = improvement_intervals(given[0], given[1][:, None], level=0.95, seed=0, resamples=2_000)
    assert improvement_intervals(given[0], given[1][:, None]).tolist() == expected.tolist()


def test_signs_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.significance.CHUNK", 1000)
    sizes, made = [], np.random.default_rng

    class Recorder:
        def __init__(self, seed: int) -> None:
            self.rng = made(seed)

        def integers(self, low: int, high: int, shape: tuple[int, int], dtype: type) -> np.ndarray:
            sizes.append(shape[0] * shape[1])
            return self.rng.integers(low, high, shape, dtype=dtype)

    monkeypatch.setattr(np.random, "default_rng", Recorder)
    assert sign_flip_p_values(np.ones((30, 1)), permutations=250)[0] == 1 / 251
    assert sum(sizes) == 250 * 30
    assert max(sizes) <= 1000
