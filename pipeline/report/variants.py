"""SpecTran's parts: what each variant loses against SpecTran, tested over users."""

import numpy as np
import polars as pl

from common.errors import UserError
from pipeline.artifacts import verify
from pipeline.grid.cells import PAIR, SPECTRAN, Cell
from pipeline.grid.published import PUBLISH, read_runs
from pipeline.report.leaders import PublishedSet
from pipeline.report.significance import gain_intervals, holm, sign_flip_p_values
from pipeline.report.titles import title
from pipeline.report.users import rank_metrics, user_shares
from pipeline.training.metrics import headline

TYPES = {"variant": pl.String, "gain": pl.Float64, "low": pl.Float64, "high": pl.Float64, "p_holm": pl.Float64, "users": pl.Int64}


def against_spectran(ndcg: dict[str, np.ndarray]) -> pl.DataFrame:
    """Return a row per variant: variant, gain, low, high, p_holm, users.

    ndcg: the NDCG of every user, the mean over seeds, (U,), of SpecTran and of its variants, or the same multiple of each. gain:
    relative, the variant's mean / SpecTran's mean - 1. low, high: its 95 % bootstrap interval over users. p_holm: p-value of a
    permutation test over users, adjusted for the number of variants. Empty if SpecTran or its variants are missing, or if
    SpecTran's mean is 0.
    """
    full = ndcg.get(SPECTRAN)
    variants = [name for name in ndcg if name != SPECTRAN]
    if full is None or not variants or not full.any():
        return pl.DataFrame(schema=TYPES)
    users = np.stack([full, *(ndcg[name] for name in variants)], axis=1)  # (U, 1 + V)
    mean, *means = users.mean(0)
    intervals = gain_intervals(users[:, 1:], full)
    columns = {
        "variant": variants,
        "gain": [value / mean - 1 for value in means],
        "low": intervals[:, 0],
        "high": intervals[:, 1],
        "p_holm": holm(sign_flip_p_values(users[:, 1:] - users[:, :1])),
        "users": [len(full)] * len(variants),
    }
    return pl.DataFrame(columns, schema=TYPES, nan_to_null=True)


def of_cells(rows: pl.DataFrame, cutoff: int) -> pl.DataFrame:
    """Return the result of `against_spectran` for each block, preceded by the block's columns and the metric.

    rows: from `table_data.variant_rows`. Raises UserError if a cell has no ranks, or cells of one dataset hold different users.
    """
    metric = f"NDCG@{cutoff}"
    tables = []
    for block in rows.filter(pl.col("variant") != "base").partition_by(PAIR, maintain_order=True):
        variants = block["variant"].unique(maintain_order=True).to_list()
        shares, _ = user_shares([block.with_columns(adapter=pl.col("variant"))], variants, [metric], cutoff)  # (U, V, 1)
        above = {key: block[key][0] for key in PAIR} | {"metric": metric}
        compared = against_spectran(dict(zip(variants, shares[:, :, 0].T, strict=True)))
        tables.append(compared.select(*(pl.lit(value).alias(key) for key, value in above.items()), pl.all()))
    return pl.concat(tables) if tables else pl.DataFrame(schema={**dict.fromkeys([*PAIR, "metric"], pl.String), **TYPES})


def of_published(of: PublishedSet, cutoff: int) -> pl.DataFrame:
    """Return the result of `against_spectran` for a published set, by the ranks that its tables show.

    Raises UserError unless it holds SpecTran and variants of it on one pair of dataset and backbone, with the settings of
    params.yaml.
    """
    runs = read_runs(of.folder)
    runs = runs.filter(pl.col("adapter") == SPECTRAN, pl.col("over").is_in(["seeds", "variants"]))
    if of.loss or runs.n_unique(PAIR) != 1 or runs["over"].n_unique() != 2:
        raise UserError(f"{of.folder}: not SpecTran and variants of it on one pair of dataset and backbone")
    column = headline("exclude_history" in runs.columns and bool(runs["exclude_history"][0])).replace("rank", "ranks", 1)
    ndcg = {}
    for over, cell in runs.group_by("over", maintain_order=True):
        first = cell.row(0, named=True)
        file = f"{Cell(first['dataset'], first['backbone'], SPECTRAN, first['over']).name}.parquet"
        verify(of.folder, PUBLISH, [file])
        ranks = pl.read_parquet(of.folder / file, columns=["fingerprint", column], glob=False)
        names = cell.select("fingerprint", variant=pl.lit(SPECTRAN) if over == ("seeds",) else pl.col("variant"))
        for (variant,), part in ranks.join(names, on="fingerprint").group_by("variant", maintain_order=True):
            seeds = [pl.DataFrame({column: found}).select(rank_metrics(column, cutoff)[0]) for found in part[column]]
            ndcg[str(variant)] = np.mean([seed.to_series().to_numpy() for seed in seeds], axis=0)
    return against_spectran(ndcg)


def parts_table(sets: dict[str, PublishedSet], cutoff: int) -> str:
    """Return a Markdown table with a row per variant and a column per set: gain over SpecTran, interval and p.

    sets: by heading. Raises UserError as `of_published`.
    """
    columns = []
    for of in sets.values():
        rows = of_published(of, cutoff).iter_rows(named=True)
        columns.append({row["variant"]: entry(row) for row in rows})
    lines = ["| | " + " | ".join(sets) + " |", "|---|" + "---:|" * len(columns)]
    for variant in dict.fromkeys(name for column in columns for name in column):
        lines.append(f"| {title(variant)} | " + " | ".join(column.get(variant, "–") for column in columns) + " |")
    return "\n".join(lines) + "\n"


def entry(row: dict) -> str:
    """Return a row of `against_spectran` in words: "-22.0 % (-26.7 to -17.0), p = 0.0004"."""
    between = "" if row["low"] is None else f" ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return f"{100 * row['gain']:+.1f} %{between}, p = {row['p_holm']:.4f}"
