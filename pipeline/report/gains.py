"""Gains over Base, with intervals over users: of every adapter, and by kind of item and of user."""

import numpy as np
import polars as pl

from pipeline.grid.cells import KEYS, PAIR
from pipeline.report.significance import gain_intervals
from pipeline.report.users import user_groups, user_metrics, user_shares, with_groups

BASE = "base"
ALL_PAIRS = "all pairs"  # stands for the dataset in the rows of the mean over all pairs of dataset and backbone


def over_base(rows: pl.DataFrame, cutoff: int) -> pl.DataFrame:
    """Return every adapter's NDCG and its gain over Base, a row per block and adapter, the highest NDCG first.

    Columns: the block, adapter, mean, gain, low, high (the 95 % bootstrap interval of the gain over users), users, seeds. gain:
    relative, mean / Base's mean - 1. If there are several blocks, rows of the mean over all blocks come first, whose dataset and
    backbone are `ALL_PAIRS`; these are of the adapters that every block has. Gains are null where Base was not run.
    """
    blocks = rows.partition_by(PAIR, maintain_order=True)
    found = []
    if len(blocks) > 1:
        found.append(_of_blocks(blocks, cutoff).with_columns(dataset=pl.lit(ALL_PAIRS), backbone=pl.lit(ALL_PAIRS)))
    for block in blocks:
        found.append(_of_blocks([block], cutoff).with_columns(pl.lit(block[key][0]).alias(key) for key in PAIR))
    return pl.concat(found).select(*PAIR, pl.exclude(PAIR))


def _of_blocks(blocks: list[pl.DataFrame], cutoff: int) -> pl.DataFrame:
    """Return the rows of `over_base` of the mean over some blocks, without the block's columns."""
    every = blocks[0]["adapter"].unique(maintain_order=True)
    adapters = [name for name in every if all(name in block["adapter"] for block in blocks)]
    types = {"adapter": pl.String, "mean": pl.Float64, "gain": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    types |= {"users": pl.Int64, "seeds": pl.Int64}
    if not adapters:
        return pl.DataFrame(schema=types)
    shares, strata = user_shares(blocks, adapters, [f"NDCG@{cutoff}"], cutoff)
    means = shares[:, :, 0].sum(0)  # (A,)
    base = shares[:, adapters.index(BASE), 0] if BASE in adapters else np.zeros(len(shares))
    intervals = gain_intervals(shares[:, :, 0], base, strata)
    seeds = pl.concat(block.group_by("adapter").len() for block in blocks).group_by("adapter").agg(pl.col("len").min())
    count = dict(seeds.rows())
    return pl.DataFrame(
        {
            "adapter": adapters,
            "mean": means,
            "gain": means / base.sum() - 1 if base.any() else np.full(len(adapters), np.nan),
            "low": intervals[:, 0],
            "high": intervals[:, 1],
            "users": [len(shares)] * len(adapters),
            "seeds": [count[name] for name in adapters],
        },
        schema=types,
        nan_to_null=True,
    ).sort("mean", descending=True, maintain_order=True)


def by_group(rows: pl.DataFrame, cutoff: int) -> pl.DataFrame:
    """Return gains over Base by popularity of the target and by length of the history.

    Columns: the block, adapter, by, group, users, mean, mean_base, gain, low, high. low and high are null for one user. Blocks
    without Base or without another adapter, and groups in which Base ranks no user's item high enough, have no rows. rows: of the
    cells of Table 2. Raises UserError if a cell has no ranks.
    """
    tables = []
    for block in rows.unique(KEYS, keep="first", maintain_order=True).partition_by(PAIR, maintain_order=True):
        if BASE not in block["adapter"] or block.height == 1:
            continue
        metric = f"NDCG@{cutoff}"
        users = {
            row["adapter"]: user_metrics(row, cutoff).group_by("user_id").agg(pl.col(metric).mean()).sort("user_id")
            for row in block.iter_rows(named=True)
        }
        wide = pl.DataFrame({"user_id": users[BASE]["user_id"]} | {name: frame[metric] for name, frame in users.items()})
        others = [name for name in users if name != BASE]
        joined = with_groups(wide, user_groups(block["dataset"][0]), block["dataset"][0]).sort(
            "by", "position", descending=[True, False], maintain_order=True
        )
        for part in joined.partition_by("by", "group", maintain_order=True):
            base, methods = part[BASE].to_numpy(), part.select(others).to_numpy()
            if not base.sum():
                continue
            intervals = gain_intervals(methods, base)
            tables.append(
                pl.DataFrame(
                    {
                        **{key: [block[key][0]] * len(others) for key in PAIR},
                        "adapter": others,
                        **{key: [part[key][0]] * len(others) for key in ("by", "group")},
                        "users": [part.height] * len(others),
                        "mean": methods.mean(0),
                        "mean_base": [base.mean()] * len(others),
                        "gain": methods.mean(0) / base.mean() - 1,
                        "low": intervals[:, 0],
                        "high": intervals[:, 1],
                    },
                    nan_to_null=True,
                )
            )
    return pl.concat(tables) if tables else pl.DataFrame(schema={"by": pl.String})
