"""Ranking metrics, computed from ranks."""

import numpy as np


def metric_names(cutoffs: list[int]) -> list[str]:
    """Return the names of all metrics, in the order that every table and file uses."""
    return [*(f"HR@{k}" for k in cutoffs), *(f"NDCG@{k}" for k in cutoffs), "MRR"]


def metrics(ranks: np.ndarray, cutoffs: list[int]) -> dict[str, float]:
    """Return HR@K and NDCG@K for every cutoff K, and MRR, as shares between 0 and 1. ranks: (U,), from 1.

    They are means over users of 1[rank <= K], 1[rank <= K] / log2(rank + 1), and 1 / rank.

    >>> metrics(np.array([1, 3, 20]), [10])["HR@10"], metrics(np.array([1, 3, 20]), [10])["NDCG@10"]
    (0.6666666666666666, 0.5)
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    hits = {k: ranks <= k for k in cutoffs}
    return {
        **{f"HR@{k}": float(hits[k].mean()) for k in cutoffs},
        **{f"NDCG@{k}": float((hits[k] / np.log2(ranks + 1)).mean()) for k in cutoffs},
        "MRR": float((1 / ranks).mean()),
    }
