"""Metrics from ranks."""

import numpy as np


def metric_names(cutoffs: list[int]) -> list[str]:
    """Names in the order in which every table and file lists them."""
    return [*(f"HR@{k}" for k in cutoffs), *(f"NDCG@{k}" for k in cutoffs), "MRR"]


def metrics(ranks: np.ndarray, cutoffs: list[int]) -> dict[str, float]:
    """HR@K, NDCG@K for every cutoff, and MRR: means over users of 1[rank <= K], 1[rank <= K] / log2(rank + 1), 1 / rank."""
    ranks = np.asarray(ranks, dtype=np.float64)
    hits = {k: ranks <= k for k in cutoffs}
    return {
        **{f"HR@{k}": float(hits[k].mean()) for k in cutoffs},
        **{f"NDCG@{k}": float((hits[k] / np.log2(ranks + 1)).mean()) for k in cutoffs},
        "MRR": float((1 / ranks).mean()),
    }
