"""Metrics of every user: comparisons of adapters by tests over users, and quality by kind of item and of user."""

from pathlib import Path

import numpy as np
import polars as pl

from common.errors import UserError
from pipeline.grid.cells import KEYS, PAIR
from pipeline.report.significance import holm, improvement_intervals, sign_flip_p_values
from pipeline.runs import sequences_directory
from pipeline.training.metrics import headline
from pipeline.training.sequences import popularity, read_sequences

GROUPED = "groups.csv"  # the result of `grouped`


def user_metrics(row: dict, cutoff: int) -> pl.DataFrame:
    """Return NDCG and HR of every user and seed of a cell: seed, user_id and the two metrics.

    row: any run of a cell of Table 2, or of the variant that is wanted. The ranks are in the column that it names as `ranking`,
    or else in that of the tables. One item is relevant, so a user with rank r <= cutoff has an HR of 1 and an NDCG of
    1 / log2(r + 1), and any other user has 0. Raises UserError if the cell has no ranks.
    """
    folder = Path(row["run_directory"]).parent  # of a variant's runs, inside the cell
    is_variant = row.get("over") == "variants"
    file = (folder.parent if is_variant else folder) / "ranks.parquet"
    if not file.is_file():
        raise UserError(f"{file} is missing; `dvc repro grid/dvc.yaml` rebuilds the cell")
    column = row.get("ranking") or headline(bool(row.get("exclude_history")))  # both may be missing
    ranks = pl.read_parquet(file, glob=False)
    ranks = ranks.filter(variant=folder.name) if is_variant else ranks
    return ranks.select("seed", "user_id", *rank_metrics(column, cutoff))


def rank_metrics(column: str, cutoff: int) -> tuple[pl.Expr, pl.Expr]:
    """Return the expressions of a user's NDCG and HR, from a column of ranks."""
    rank, hit = pl.col(column).cast(pl.Float64), (pl.col(column) <= cutoff).cast(pl.Float64)
    return (hit / (rank + 1).log(2)).alias(f"NDCG@{cutoff}"), hit.alias(f"HR@{cutoff}")


def comparisons(rows: pl.DataFrame, cutoff: int, unusable: pl.DataFrame) -> pl.DataFrame:
    """Return the result of `compare` for each block, preceded by the block's columns; empty if no block has two adapters."""
    tables = []
    for block in rows.partition_by(PAIR, maintain_order=True):
        compared = compare(block, cutoff, unusable.join(block, on=PAIR, how="semi"))
        if compared.height:
            tables.append(compared.select(*(pl.lit(block[name][0]).alias(name) for name in PAIR), pl.all()))
    return pl.concat(tables) if tables else pl.DataFrame()


def compare(rows: pl.DataFrame, cutoff: int, unusable: pl.DataFrame) -> pl.DataFrame:
    """Compare the leader with every other adapter: return means, improvement, interval and p-values, by metric and other adapter.

    The adapters that every block of `rows` has are compared by the mean over blocks of the mean over users. A user's metric is
    the mean over seeds. The leader is the adapter with the highest NDCG among those without an unusable run, or among all
    adapters if each has one.

    p: two-sided p-value of a sign-flip permutation test over users; all metrics of a user change sign together. p_holm: p,
    adjusted for the number of other adapters. improvement: relative, mean / mean_other - 1. low, high: its 95 % bootstrap
    interval, in which users are resampled within each dataset. std, std_other: standard deviations over seeds, which measure
    chance in training; the test over users does not.

    The result is empty if fewer than two adapters are in every block. Raises UserError if a cell has no ranks, or cells of one
    dataset hold different users.
    """
    names = [f"NDCG@{cutoff}", f"HR@{cutoff}"]
    blocks = rows.partition_by(PAIR, maintain_order=True)
    adapters = [name for name in rows["adapter"].unique(maintain_order=True) if all(name in b["adapter"] for b in blocks)]
    if len(adapters) < 2:
        return pl.DataFrame()
    shares, strata = user_shares(blocks, adapters, names, cutoff)
    means = shares.sum(0)  # (A, M)
    usable = [i for i, name in enumerate(adapters) if name not in unusable["adapter"]] or list(range(len(adapters)))
    best = max(usable, key=lambda i: means[i, 0])
    others = [i for i in range(len(adapters)) if i != best]
    p_values = sign_flip_p_values(np.hstack([shares[:, [best], m] - shares[:, others, m] for m in range(len(names))]))
    seeds = rows.filter(pl.col("adapter").is_in(adapters)).group_by(KEYS).len()["len"].min()
    by_seed = rows.group_by("adapter", "seed", maintain_order=True).agg(pl.col(name).mean() for name in names)  # over blocks
    comparison = []
    for m, (name, p) in enumerate(zip(names, np.split(p_values, len(names)), strict=True)):
        spread = dict(by_seed.group_by("adapter").agg(pl.col(name).std()).rows())
        intervals = improvement_intervals(shares[:, best, m], shares[:, others, m], strata)
        adjusted = holm(p)
        mean = float(means[best, m])
        for i, other in enumerate(others):
            mean_other = float(means[other, m])
            comparison.append(
                {"metric": name, "leader": adapters[best], "other": adapters[other]}
                | {"mean": mean, "std": spread[adapters[best]], "mean_other": mean_other, "std_other": spread[adapters[other]]}
                | {"difference": mean - mean_other, "improvement": mean / mean_other - 1 if mean_other else None}
                | {"low": intervals[i, 0], "high": intervals[i, 1], "p": p[i], "p_holm": adjusted[i]}
                | {"users": len(shares), "seeds": seeds}
            )
    types = dict.fromkeys(("std", "std_other", "improvement"), pl.Float64)
    return pl.DataFrame(comparison, infer_schema_length=None, schema_overrides=types)


def user_shares(blocks: list[pl.DataFrame], adapters: list[str], names: list[str], cutoff: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what each user contributes to the mean over blocks, (U, A, M), and the index of each user's dataset, (U,).

    U users, A adapters, M metrics. The sum over users is the mean over blocks. Example: with two backbones on a dataset of 100
    users, a user whose NDCGs are 0.5 and 0.3 contributes (0.5 + 0.3) / (2 x 100).
    """
    users: dict[str, pl.Series] = {}
    shares: dict[str, np.ndarray] = {}
    for block in blocks:
        dataset = block["dataset"][0]
        cells = {row["adapter"]: row for row in block.unique("adapter", keep="first", maintain_order=True).iter_rows(named=True)}
        metrics = []
        for adapter in adapters:
            frame = user_metrics(cells[adapter], cutoff).group_by("user_id").mean().sort("user_id")
            if not users.setdefault(dataset, frame["user_id"]).equals(frame["user_id"]):
                raise UserError(f"the cells of {dataset} hold different users; `dvc repro grid/dvc.yaml` rebuilds them")
            metrics.append(frame.select(names).to_numpy())
        share = np.stack(metrics, axis=1) / (len(blocks) * len(users[dataset]))  # (U, A, M) of this dataset
        shares[dataset] = shares[dataset] + share if dataset in shares else share
    strata = np.repeat(np.arange(len(shares)), [len(part) for part in shares.values()])
    return np.concatenate(list(shares.values())), strata


def grouped(rows: pl.DataFrame, cutoff: int) -> pl.DataFrame:
    """Return test metrics by popularity of the target and by length of the history.

    A row per cell, kind of group (`by`), group and metric: mean and standard deviation over seeds, and the number of users.
    Raises UserError if a cell has no ranks, or its users are not those of the dataset's sequences.
    """
    tables = []
    for dataset, cells in rows.unique(KEYS, keep="first", maintain_order=True).group_by("dataset", maintain_order=True):
        groups = user_groups(str(dataset[0]))
        for row in cells.iter_rows(named=True):
            users = with_groups(user_metrics(row, cutoff), groups, str(dataset[0]))
            tables.append(
                users.unpivot(
                    on=[f"NDCG@{cutoff}", f"HR@{cutoff}"],
                    index=["seed", "by", "position", "group"],
                    variable_name="metric",
                    value_name="value",
                )
                .group_by("by", "position", "group", "metric", "seed", maintain_order=True)
                .agg(pl.col("value").mean(), users=pl.len())
                .group_by("by", "position", "group", "metric", maintain_order=True)
                .agg(pl.col("users").first(), mean=pl.col("value").mean(), std=pl.col("value").std())
                .sort("by", "position", "metric", descending=[True, False, True])
                .select(*(pl.lit(row[key]).alias(key) for key in KEYS), pl.exclude("position"))
            )
    return pl.concat(tables)


def with_groups(users: pl.DataFrame, groups: pl.DataFrame, dataset: str) -> pl.DataFrame:
    """Join a dataset's `user_groups` to rows of a cell's users. Raises UserError if these are not the users of the dataset."""
    if set(users["user_id"]) != set(groups["user_id"]):
        raise UserError(
            f"the cells of {dataset} hold other users than {sequences_directory(dataset)}; "
            "`dvc repro grid/dvc.yaml` rebuilds them"
        )
    return users.join(groups, on="user_id", maintain_order="left")


def user_groups(dataset: str) -> pl.DataFrame:
    """Return two rows per test user, `by` popularity and `by` history: the group's name and its position in the order of groups.

    popularity: training interactions of the user's test item. The head is the most popular items, which together have up to a
    third of all training interactions; mid reaches up to two thirds; the tail is the rest, including items without any
    interaction. Equally popular items are in the same group. history: the number of the user's training items, divided at its
    quartiles.

    Example: four items have 6, 3, 2 and 1 training interactions, 12 in total. More popular items have 0, 6, 9 and 11 interactions
    in total, which is 0, 1.5, 2.25 and 2.75 thirds: the first item is head, the second mid, the others are tail.
    """
    everyone, n_items = read_sequences(sequences_directory(dataset))
    counts = popularity(everyone, n_items)
    users = everyone.filter(pl.col("test").is_not_null())
    more_popular = _interactions_above(counts)  # (N,)
    third = np.minimum(2, 3 * more_popular // max(1, counts.sum()))
    third[counts == 0] = 2
    length = users["train"].to_numpy()
    edges = sorted({*np.quantile(length, [0.25, 0.5, 0.75], method="lower").astype(int).tolist()} - {int(length.max())})
    names = [_range(low + 1, high) for low, high in zip([length.min() - 1, *edges], [*edges, length.max()], strict=True)]
    bins = np.searchsorted(edges, length)
    target = users.select(pl.col("items").list.get(pl.col("test"))).to_series().to_numpy()
    by_popularity = {"position": third[target], "group": [("head", "mid", "tail")[i] for i in third[target]]}
    by_length = {"position": bins, "group": [names[i] for i in bins]}
    return pl.concat(
        pl.DataFrame({"user_id": users["user_id"], "by": [by] * users.height} | columns).cast({"position": pl.Int64})
        for by, columns in (("popularity", by_popularity), ("history", by_length))
    )


def _interactions_above(counts: np.ndarray) -> np.ndarray:
    """Return the total interactions of all items that are more popular than each item. counts: (N,). Returns (N,)."""
    values, inverse, items = np.unique(counts, return_inverse=True, return_counts=True)
    total = values * items
    above: np.ndarray = (total[::-1].cumsum()[::-1] - total)[inverse]
    return above


def _range(low: int, high: int) -> str:
    """Return "3–5", or "3" if both ends are equal."""
    return f"{low}" if low == high else f"{low}–{high}"
