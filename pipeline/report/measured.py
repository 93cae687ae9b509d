"""What the report is made of: the rows of all runs and what is computed from them, once for every table, figure and sentence."""

from dataclasses import dataclass
from typing import Self

import polars as pl

from pipeline.params import Params
from pipeline.report import results, table_data, users
from pipeline.report.gains import by_group, over_base
from pipeline.report.results import ResultSet
from pipeline.report.trivial import trivial_rows


@dataclass(frozen=True)
class Measured:
    """The results of all cells of a report.

    rows: a row per run, as `read_cells` returns them; cutoff: of the metrics that are compared; result_sets: the first is for the
    settings of params.yaml; gains, group_gains: from `gains.over_base` and `gains.by_group`; grouped: from `users.grouped`; cost:
    from `table_data.cost`; trivial: rows of the trivial baselines; without_trivial: datasets that have none; unusable: runs that
    support no conclusion.
    """

    rows: pl.DataFrame
    cutoff: int
    result_sets: list[ResultSet]
    gains: pl.DataFrame
    group_gains: pl.DataFrame
    grouped: pl.DataFrame
    cost: pl.DataFrame
    trivial: pl.DataFrame
    without_trivial: list[str]
    unusable: pl.DataFrame

    @classmethod
    def of(cls, params: Params, rows: pl.DataFrame) -> Self:
        """Compute them from the rows of runs. Raises UserError if an artifact is damaged."""
        cutoff = max(params.evaluate.cutoffs)
        default = of_table2(rows)
        trivial, without_trivial = trivial_rows(params, default["dataset"].unique(maintain_order=True).to_list())
        return cls(
            rows=rows,
            cutoff=cutoff,
            result_sets=results.result_sets(rows, results.table_metrics(params.evaluate.cutoffs), cutoff, params.train),
            gains=over_base(default, cutoff),
            group_gains=by_group(default, cutoff),
            grouped=users.grouped(default, cutoff),
            cost=table_data.cost(default),
            trivial=trivial,
            without_trivial=without_trivial,
            unusable=results.unusable_runs(rows, params.train),
        )

    @property
    def default(self) -> pl.DataFrame:
        """The rows of Table 2 with the settings of params.yaml."""
        return of_table2(self.rows)

    def rows_of(self, result_set: ResultSet) -> pl.DataFrame:
        """The rows of a result set."""
        return self.rows.filter(over="tuned", loss=result_set.loss) if result_set.loss else self.default

    @property
    def first(self) -> ResultSet:
        """The results of `default`."""
        return self.result_sets[0]

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return f"NDCG@{self.cutoff}"


def of_table2(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of Table 2 with the settings of params.yaml: no variants, other dims or tuned adapters."""
    return rows.filter(pl.col("over") == "seeds")
