"""Ranking metrics, computed from ranks."""

import numpy as np
import polars as pl

ALL_ITEMS, NEW_ITEMS = "rank", "rank_without_history"  # columns of ranks.parquet, by the run's similarity


def headline(exclude_history: bool) -> str:
    """Return the column of ranks.parquet whose metrics the tables show."""
    return NEW_ITEMS if exclude_history else ALL_ITEMS


def metrics_by_ranking(ranks: pl.DataFrame, cutoffs: list[int], exclude_history: bool) -> dict[str, dict[str, float]]:
    """Return the metrics of every column of ranks.parquet, {ranking: {metric: value}}; those of `headline` first, as "".

    The other rankings are named by their difference from it: `without_history` or `with_history`, and `dot` or `cosine`.
    """
    chosen = headline(exclude_history)
    columns = [chosen, *(name for name in ranks.columns if name.startswith("rank") and name != chosen)]
    names = ["", *("with_history" if name == ALL_ITEMS else name.removeprefix("rank_") for name in columns[1:])]
    return {name: metrics(ranks[column].to_numpy(), cutoffs) for name, column in zip(names, columns, strict=True)}


def metric_names(cutoffs: list[int]) -> list[str]:
    """Return the names of all metrics, in the order that every table and file uses."""
    return [*(f"HR@{k}" for k in cutoffs), *(f"NDCG@{k}" for k in cutoffs), "MRR"]


def metrics(ranks: np.ndarray, cutoffs: list[int]) -> dict[str, float]:
    """Return HR@K and NDCG@K for every cutoff K, and MRR, as shares between 0 and 1. ranks: (U,), from 1.

    They are means over users of 1[rank <= K], 1[rank <= K] / log2(rank + 1), and 1 / rank.

    >>> metrics(np.array([1, 3, 20]), [10])["HR@10"], metrics(np.array([1, 3, 20]), [10])["NDCG@10"]
    (0.6666666666666666, 0.5)
    """
    return metrics_at(ranks, cutoffs) | {"MRR": float((1 / np.asarray(ranks, dtype=np.float64)).mean())}


def metrics_at(ranks: np.ndarray, cutoffs: list[int]) -> dict[str, float]:
    """Return HR@K and NDCG@K as `metrics` does. Ranks above the largest cutoff need not be exact."""
    ranks = np.asarray(ranks, dtype=np.float64)
    hits = {k: ranks <= k for k in cutoffs}
    return {
        **{f"HR@{k}": float(hits[k].mean()) for k in cutoffs},
        **{f"NDCG@{k}": float((hits[k] / np.log2(ranks + 1)).mean()) for k in cutoffs},
    }
