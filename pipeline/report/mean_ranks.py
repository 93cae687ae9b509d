"""Mean ranks of adapters over several pairs of dataset and backbone, with Friedman's test and Nemenyi's critical difference."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.grid.cells import PAIR


@dataclass(frozen=True)
class MeanRanks:
    """ranks: adapter and rank, the lowest mean rank first; p: of Friedman's test; critical: Nemenyi's difference at 5 %."""

    ranks: pl.DataFrame
    blocks: int
    p: float
    critical: float


def mean_ranks(summary: pl.DataFrame, metric: str) -> MeanRanks | None:
    """Rank the adapters within each block by a metric, 1 for the best, and average over blocks (Demsar 2006).

    summary: from `results.summarise`. Adapters that some block lacks are left out. None with fewer than two blocks or three
    adapters. Two mean ranks differ beyond chance, at 5 % and for all pairs of adapters together, if they differ by more than
    `critical`.
    """
    means = summary.filter(pl.col("metric") == metric).pivot(on="adapter", index=PAIR, values="mean").drop(PAIR)
    complete = [name for name in means.columns if means[name].null_count() == 0]
    table = means.select(complete).to_numpy()  # (N, k)
    blocks, k = table.shape
    if blocks < 2 or k < 3:
        return None

    from scipy.stats import friedmanchisquare, rankdata, studentized_range  # a third of the report's imports, in seconds

    ranks = np.apply_along_axis(rankdata, 1, -table).mean(0)
    quantile = float(studentized_range.ppf(0.95, k, np.inf)) / 2**0.5
    return MeanRanks(
        pl.DataFrame({"adapter": complete, "rank": ranks}).sort("rank", maintain_order=True),
        blocks,
        float(friedmanchisquare(*table.T).pvalue),
        quantile * (k * (k + 1) / (6 * blocks)) ** 0.5,
    )
