"""Whether a difference between two methods would be there with other users: paired tests and intervals from per-user figures."""

import numpy as np

PERMUTATIONS = 10_000
RESAMPLES = 2_000
AT_ONCE = 4_000_000  # random numbers held at a time


def sign_flip_p_values(differences: np.ndarray, seed: int = 0, permutations: int = PERMUTATIONS) -> np.ndarray:
    """Two-sided p of the mean difference of every column, by a paired permutation test. differences: (U, C) -> (C,).

    Under the null hypothesis a user's two figures may be exchanged, which flips the sign of the difference. The p-value counts
    the flips, among `permutations` drawn ones and the observed one, whose mean is at least as far from zero; the smallest that
    can come out is 1 / (permutations + 1). All columns see the same flips.
    """
    rng = np.random.default_rng(seed)
    observed = np.abs(differences.sum(0))
    # Sums of what differs in the last digit only are equal sums.
    threshold = observed * (1 - 1e-9)
    extreme = np.ones(differences.shape[1])
    size = max(1, AT_ONCE // len(differences))
    for start in range(0, permutations, size):
        count = min(size, permutations - start)
        signs = 2.0 * rng.integers(0, 2, (count, len(differences)), dtype=np.int8) - 1
        extreme += (np.abs(signs @ differences) >= threshold).sum(0)
    p_values: np.ndarray = extreme / (permutations + 1)
    return p_values


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment: compared with 0.05, at most 5 % of families of true null hypotheses lose one. (C,) -> (C,)"""
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values, dtype=float)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def improvement_intervals(
    ours: np.ndarray,
    theirs: np.ndarray,
    strata: np.ndarray | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Percentile bootstrap intervals, over users, of mean(ours) / mean(theirs) - 1. ours: (U,), theirs: (U, C) -> (C, 2).

    `strata` (U,), 0 at first and rising, says which users are resampled together: those of one dataset. All columns see the same
    resamples. Where a resample's mean is zero, its ratio is left out.
    """
    rng = np.random.default_rng(seed)
    both = np.column_stack([ours, theirs])
    sums = np.empty((resamples, both.shape[1]))
    sizes = [len(both)] if strata is None else np.bincount(strata).tolist()
    for i in range(resamples):
        counts = np.concatenate([np.bincount(rng.integers(0, size, size), minlength=size) for size in sizes])
        sums[i] = counts @ both
    tail = 50 * (1 - level)
    intervals = np.full((theirs.shape[1], 2), np.nan)
    for column in range(theirs.shape[1]):
        other = sums[:, 1 + column]
        if (there := other > 0).any():
            intervals[column] = np.percentile(sums[there, 0] / other[there] - 1, [tail, 100 - tail])
    return intervals
