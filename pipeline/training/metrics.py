"""Metrics from ranks."""

import numpy as np
import polars as pl

ALL_ITEMS, NEW_ITEMS = "rank", "rank_without_history"  # columns of ranks.parquet, by the run's similarity


def headline(exclude_history: bool) -> str:
    """The column of ranks.parquet whose metrics the tables show."""
    return NEW_ITEMS if exclude_history else ALL_ITEMS


def metrics_by_ranking(ranks: pl.DataFrame, cutoffs: list[int], exclude_history: bool) -> dict[str, dict[str, float]]:
    """Metrics of every column of ranks.parquet, the headline's first and under "".

    The others are named for what they do otherwise: `without_history` (or `with_history`), `dot` (or `cosine`).
    """
    chosen = headline(exclude_history)
    columns = [chosen, *(name for name in ranks.columns if name.startswith("rank") and name != chosen)]
    names = ["", *("with_history" if name == ALL_ITEMS else name.removeprefix("rank_") for name in columns[1:])]
    return {name: metrics(ranks[column].to_numpy(), cutoffs) for name, column in zip(names, columns, strict=True)}


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
