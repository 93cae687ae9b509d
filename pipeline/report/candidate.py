"""An adapter that may be shipped: the means over its seeds, their spread, and the gains of its users."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.report.users import rank_metrics


@dataclass(frozen=True)
class Candidate:
    """One adapter on one dataset and backbone: a row per seed."""

    runs: pl.DataFrame

    @property
    def adapter(self) -> str:
        return str(self.runs["adapter"][0])

    def mean(self, name: str) -> float:
        return float(self.runs[name].to_numpy().mean())

    def std(self, name: str) -> float | None:
        return float(np.std(self.runs[name].to_numpy(), ddof=1)) if self.runs.height > 1 else None

    @property
    def ranks(self) -> Path:
        return Path(self.runs["run_directory"][0]).parent / "ranks.parquet"

    def has(self, column: str) -> bool:
        """Whether the cell has the ranks of a protocol."""
        return column in pl.scan_parquet(self.ranks, glob=False).collect_schema()

    def gains(self, column: str, cutoff: int) -> pl.DataFrame:
        """user_id and NDCG of every user, mean over seeds, sorted by user."""
        ranks = pl.read_parquet(self.ranks, columns=["user_id", column], glob=False)
        return ranks.group_by("user_id").agg(rank_metrics(column, cutoff)[0].mean().alias("gain")).sort("user_id")
