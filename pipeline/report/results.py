"""The results of the grid as data: means and spreads beside the paper's numbers, and SpecTran's improvement over the others."""

from dataclasses import dataclass

import polars as pl

from pipeline.grid.cells import KEYS, PAIR, SPECTRAN
from pipeline.params import Train
from pipeline.report.paper import paper_values
from pipeline.report.table_data import DIMENSION_KEYS
from pipeline.report.users import compare, comparisons


def table_metrics(cutoffs: list[int]) -> list[str]:
    """Return the names of the metrics that the tables show, in the order of the paper's Table 2."""
    return [*(f"NDCG@{k}" for k in cutoffs), *(f"HR@{k}" for k in cutoffs)]


@dataclass(frozen=True)
class ResultSet:
    """The results of one Table 2, whose adapters use the settings of params.yaml (`loss` is None) or were tuned under `loss`.

    summary: from `summarise`. comparisons: from `users.comparisons`, block by block. overall: from `users.compare`, over all
    blocks. Both may be empty. unusable: from `unusable_runs`.
    """

    loss: str | None
    summary: pl.DataFrame
    comparisons: pl.DataFrame
    overall: pl.DataFrame
    unusable: pl.DataFrame

    def file_name(self, table: str) -> str:
        """Return the file name, without ending, of one of this set's tables: `table2`, or `table2-info_nce` if tuned."""
        return f"{table}-{self.loss}" if self.loss else table


def result_sets(rows: pl.DataFrame, names: list[str], cutoff: int, train: Train) -> list[ResultSet]:
    """Return one result set for the settings of params.yaml, then one for each loss with tuned cells.

    rows: a row per run, as `read_cells` returns them. names: the metrics to summarise. cutoff: of the metrics that are compared
    user by user.
    """
    default, tuned = (rows.filter(pl.col("over") == over) for over in ("seeds", "tuned"))
    by_loss = [(part["loss"][0], part) for part in tuned.partition_by("loss", maintain_order=True) if part.height]
    sets = []
    for loss, part in [(None, default), *by_loss]:
        unusable = unusable_runs(part, train)
        by_block = comparisons(part, cutoff, unusable)
        overall = compare(part, cutoff, unusable) if part.n_unique(PAIR) > 1 else by_block
        sets.append(ResultSet(loss, summarise(part, names), by_block, overall, unusable))
    return sets


def unusable_runs(rows: pl.DataFrame, train: Train) -> pl.DataFrame:
    """Return the rows of runs that support no conclusion, with the reason as `why`.

    "never learned": no epoch had a better validation than the first. "not finished": the run reached `train.epochs` less than
    `train.patience` epochs after its best epoch, so more epochs might have improved it.
    """
    never = (pl.col("best_epoch") == 1) & (pl.col("epochs") > 1)
    capped = (pl.col("epochs") >= train.epochs) & (pl.col("epochs") - pl.col("best_epoch") < train.patience)
    why = pl.when(never).then(pl.lit("never learned")).when(capped).then(pl.lit("not finished"))
    return rows.with_columns(why=why).filter(pl.col("why").is_not_null())


def summarise(rows: pl.DataFrame, names: list[str], keys: list[str] = KEYS, paper: str = "table2") -> pl.DataFrame:
    """Return a row per `keys` and metric: mean, std, seeds, paper, difference.

    std: the sample standard deviation over seeds, null for one seed. seeds: their number. paper: the value of the paper's table
    of that name, null if it has none. difference: mean - paper.
    """
    measured = (
        rows.unpivot(on=names, index=[*keys, "seed"], variable_name="metric", value_name="value")
        .group_by([*keys, "metric"], maintain_order=True)
        .agg(mean=pl.col("value").mean(), std=pl.col("value").std(), seeds=pl.len())
    )
    in_paper = paper_values(paper, keys)
    return measured.join(in_paper, on=[*keys, "metric"], how="left", maintain_order="left").with_columns(
        difference=pl.col("mean") - pl.col("paper")
    )


def improvements(summary: pl.DataFrame, value: str = "mean") -> pl.DataFrame:
    """Return SpecTran's relative improvement over the best other adapter of each block: block, metric, best, improvement.

    The rows of a block have the same keys except the adapter. value: the column to compare, `mean` or `paper`. An improvement of
    0.1 means 10 %. Blocks without SpecTran, or in which every other adapter has a value of 0, are left out.
    """
    keys = [name for name in DIMENSION_KEYS[:-1] if name in summary.columns] + ["metric"]
    known = summary.filter(pl.col(value).is_not_null())
    others = (
        known.filter(pl.col("adapter") != SPECTRAN)
        .sort(value, descending=True, maintain_order=True)
        .group_by(keys, maintain_order=True)
        .agg(best=pl.col("adapter").first(), best_mean=pl.col(value).first())
        .filter(pl.col("best_mean") > 0)
    )
    return (
        known.filter(pl.col("adapter") == SPECTRAN)
        .join(others, on=keys, how="inner", maintain_order="left")
        .select(*keys, "best", improvement=pl.col(value) / pl.col("best_mean") - 1)
    )


def average(improvement: pl.DataFrame) -> float:
    """Return the mean improvement over blocks and metrics, which is how the paper averages its own."""
    return float(improvement["improvement"].to_numpy().mean())
