"""What the cells say, as data: means and spreads beside the paper's numbers, tests, and quality by kind of item and of user."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from common.errors import UserError
from pipeline.artifacts import read_json
from pipeline.grid.cells import KEYS, OURS
from pipeline.params import Grid, Train
from pipeline.report.significance import holm, improvement_intervals, sign_flip_p_values
from pipeline.runs import sequences_directory
from pipeline.training.metrics import headline
from pipeline.training.sequences import popularity, read_sequences

PAPER = Path(__file__).parents[2] / "metrics/paper"
BLOCK = ["dataset", "backbone"]
VARIANT_KEYS = [*BLOCK, "variant"]
DIMENSION_KEYS = [*BLOCK, "dim", "adapter"]


def table_metrics(cutoffs: list[int]) -> list[str]:
    """Metrics in the order of the paper's Table 2."""
    return [*(f"NDCG@{k}" for k in cutoffs), *(f"HR@{k}" for k in cutoffs)]


def paper_table(name: str = "table2") -> pl.DataFrame:
    """A table of the paper (LLaMA3-8B embeddings), as data. Table 4, like Figure 1, is for SASRec."""
    table = pl.read_csv(PAPER / f"{name}.csv")
    return table.with_columns(backbone=pl.lit("sasrec")) if name == "table4" else table


@dataclass(frozen=True)
class ResultSet:
    """Table 2: with every method as params.yaml sets it, or tuned under `loss`.

    `comparisons`, block by block, and `overall`, over all blocks, are from `compare`; either may be empty. `unusable`: from
    `unusable_runs`.
    """

    loss: str | None
    summary: pl.DataFrame
    comparisons: pl.DataFrame
    overall: pl.DataFrame
    unusable: pl.DataFrame

    def named(self, table: str) -> str:
        """A table of this result_set as a file."""
        return f"{table}-{self.loss}" if self.loss else table


def result_sets(rows: pl.DataFrame, names: list[str], cutoff: int, train: Train) -> list[ResultSet]:
    """Table 2 as often as there are cells for it. `cutoff`: of the metrics that are compared user by user."""
    plain, tuned = (rows.filter(pl.col("over") == over) for over in ("seeds", "tuned"))
    parts = [(None, plain)] + [(part["loss"][0], part) for part in tuned.partition_by("loss", maintain_order=True) if part.height]
    found = []
    for loss, part in parts:
        unusable = unusable_runs(part, train)
        by_block = comparisons(part, cutoff, unusable)
        overall = compare(part, cutoff, unusable) if part.n_unique(BLOCK) > 1 else by_block
        found.append(ResultSet(loss, summarise(part, names), by_block, overall, unusable))
    return found


def unusable_runs(rows: pl.DataFrame, train: Train) -> pl.DataFrame:
    """Runs from which nothing is concluded, with `why`.

    "never learned": no epoch validated better than the first. "not finished": `train.epochs` ended the run less than
    `train.patience` epochs after its best, so that more epochs might have made it better.
    """
    never = (pl.col("best_epoch") == 1) & (pl.col("epochs") > 1)
    capped = (pl.col("epochs") >= train.epochs) & (pl.col("epochs") - pl.col("best_epoch") < train.patience)
    why = pl.when(never).then(pl.lit("never learned")).when(capped).then(pl.lit("not finished"))
    return rows.with_columns(why=why).filter(pl.col("why").is_not_null())


def summarise(rows: pl.DataFrame, names: list[str], keys: list[str] = KEYS, paper: str = "table2") -> pl.DataFrame:
    """Long table by `keys` and metric: mean, sample standard deviation and number of seeds, the paper's mean, the difference."""
    measured = (
        rows.unpivot(on=names, index=[*keys, "seed"], variable_name="metric", value_name="value")
        .group_by([*keys, "metric"], maintain_order=True)
        .agg(mean=pl.col("value").mean(), std=pl.col("value").std(), seeds=pl.len())
    )
    theirs = long_form(paper, keys)
    return measured.join(theirs, on=[*keys, "metric"], how="left", maintain_order="left").with_columns(
        difference=pl.col("mean") - pl.col("paper")
    )


def long_form(paper: str, keys: list[str] = KEYS) -> pl.DataFrame:
    """A table of the paper by `keys` and metric, the number as `paper`."""
    return paper_table(paper).unpivot(index=keys, variable_name="metric", value_name="paper")


def improvements(summary: pl.DataFrame, value: str = "mean") -> pl.DataFrame:
    """Relative improvement of SpecTran over the best other adapter of each block: block, metric, best, improvement.

    A block is what has the same keys but for the adapter. `value` may be the paper's column.
    """
    keys = [name for name in DIMENSION_KEYS[:-1] if name in summary.columns] + ["metric"]
    known = summary.filter(pl.col(value).is_not_null())
    others = (
        known.filter(pl.col("adapter") != OURS)
        .sort(value, descending=True, maintain_order=True)
        .group_by(keys, maintain_order=True)
        .agg(best=pl.col("adapter").first(), best_mean=pl.col(value).first())
        .filter(pl.col("best_mean") > 0)
    )
    return (
        known.filter(pl.col("adapter") == OURS)
        .join(others, on=keys, how="inner", maintain_order="left")
        .select(*keys, "best", improvement=pl.col(value) / pl.col("best_mean") - 1)
    )


def average(improvement: pl.DataFrame) -> float:
    """The mean over blocks and metrics, as the paper counts its own."""
    return float(improvement["improvement"].to_numpy().mean())


# ----------------------------------------------------------------------------------------------------------- rows of each table


def variant_rows(rows: pl.DataFrame, grid: Grid, ours: str) -> pl.DataFrame:
    """Rows of Table 3: Base, SpecTran and its variants, by `variant`. `ours` is the variant that the cells of Table 2 hold."""
    here = rows.filter(pl.col("dataset").is_in(grid.ablations.datasets) & pl.col("backbone").is_in(grid.ablations.backbones))
    plain = here.filter((pl.col("over") == "seeds") & pl.col("adapter").is_in(["base", OURS]))
    named = pl.when(pl.col("adapter") == OURS).then(pl.lit(ours)).otherwise(pl.lit("base"))
    both = pl.concat([plain.with_columns(variant=named), here.filter(pl.col("over") == "variants")], how="diagonal_relaxed")
    both = both.with_columns(variant=pl.col("variant").replace("full", OURS))
    found = both.unique([*VARIANT_KEYS, "seed"], keep="first", maintain_order=True)
    order = {name: i for i, name in enumerate(["base", OURS, *grid.ablations.variants])}
    return _in_order(found, {"dataset": grid.ablations.datasets, "backbone": grid.ablations.backbones, "variant": list(order)})


def dimension_rows(rows: pl.DataFrame, grid: Grid) -> pl.DataFrame:
    """Rows of Table 4: the adapters of `grid.dimensions` at its dims and at `grid.dim`."""
    lists = grid.dimensions
    here = rows.filter(
        pl.col("over").is_in(["seeds", "dims"])
        & pl.col("dataset").is_in(lists.datasets)
        & pl.col("backbone").is_in(lists.backbones)
        & pl.col("adapter").is_in(lists.adapters)
    )
    found = here.unique([*DIMENSION_KEYS, "seed"], keep="first", maintain_order=True)
    dims = sorted({*lists.dims, grid.dim})
    return _in_order(found, {"dataset": lists.datasets, "backbone": lists.backbones, "dim": dims, "adapter": lists.adapters})


def _in_order(rows: pl.DataFrame, lists: dict[str, list]) -> pl.DataFrame:
    """Sort as the lists say."""
    places = [pl.col(name).replace_strict(values, range(len(values)), default=len(values)) for name, values in lists.items()]
    return rows.sort([*places, "seed"], maintain_order=True)


def cost(rows: pl.DataFrame) -> pl.DataFrame:
    """Table 5, by cell: size, seconds (means over seeds) and test quality; the paper's numbers, which are for Toys and SASRec."""
    seconds = ["training_seconds", "seconds_per_epoch", "inference_seconds"]
    measured = rows.group_by(KEYS, maintain_order=True).agg(
        pl.col("trainable_parameters").first(),
        *(pl.col(name).mean() for name in (*seconds, "epochs", "best_epoch")),
        training_seconds_std=pl.col("training_seconds").std(),
        threads=pl.col("threads").max(),
        device=pl.col("device").first(),
        seeds=pl.len(),
    )
    paper = paper_table("table5").select(
        dataset=pl.lit("toys"),
        backbone=pl.lit("sasrec"),
        adapter="method",
        paper_trainable_parameters=(1e6 * pl.col("trainable_parameters_millions")).round().cast(pl.Int64),
        paper_training_seconds="training_seconds",
        paper_inference_seconds="inference_seconds",
    )
    return measured.join(paper, on=KEYS, how="left", maintain_order="left").with_columns(
        (pl.col(name) - pl.col(f"paper_{name}")).alias(f"difference_{name}")
        for name in ("trainable_parameters", "training_seconds", "inference_seconds")
    )


def weights(rows: pl.DataFrame) -> pl.DataFrame:
    """Table 6, by (dataset, backbone) and kind: SpecTran's mean principal and subordinate weights, the paper's (SASRec)."""
    learned = []
    for row in rows.filter(pl.col("adapter") == OURS).iter_rows(named=True):
        report = read_json(Path(row["run_directory"]) / "analysis.json", "evaluation")["learned"]
        kinds = {kind: report.get(f"{kind}_weight") for kind in ("principal", "subordinate")}
        learned += [{k: row[k] for k in (*BLOCK, "seed")} | {"kind": kind, "value": value} for kind, value in kinds.items()]
    types = {"dataset": pl.String, "backbone": pl.String, "seed": pl.Int64, "kind": pl.String, "value": pl.Float64}
    paper = paper_table("table6").unpivot(index="dataset", variable_name="kind", value_name="paper")
    return (
        pl.DataFrame(learned, schema=types)
        .drop_nulls("value")
        .group_by([*BLOCK, "kind"], maintain_order=True)
        .agg(mean=pl.col("value").mean(), std=pl.col("value").std(), seeds=pl.len())
        .join(paper.with_columns(backbone=pl.lit("sasrec")), on=[*BLOCK, "kind"], how="left", maintain_order="left")
        .with_columns(difference=pl.col("mean") - pl.col("paper"))
    )


def sizes(datasets: list[str]) -> pl.DataFrame:
    """Table 1, by dataset: users, items, interactions after every filter, the paper's, the difference."""
    counts = ["users", "items", "interactions"]
    found = []
    for dataset in datasets:
        statistics = read_json(sequences_directory(dataset) / "statistics.json", f"the preprocess stage of {dataset}")
        found.append({"dataset": dataset} | {name: statistics[name] for name in (*counts, "density")})
    paper = paper_table("table1").rename({name: f"paper_{name}" for name in counts})
    joined = pl.DataFrame(found).join(paper, on="dataset", how="left", maintain_order="left")
    return joined.with_columns((pl.col(name) - pl.col(f"paper_{name}")).alias(f"difference_{name}") for name in counts)


# ----------------------------------------------------------------------------------------------------------------- user by user


def user_figures(row: dict, cutoff: int) -> pl.DataFrame:
    """NDCG and HR of every user and seed of a cell of Table 2, of which `row` is a run: seed, user_id and the two metrics."""
    file = Path(row["run_directory"]).parent / "ranks.parquet"
    if not file.is_file():
        raise UserError(f"{file} is missing; `dvc repro grid/dvc.yaml` makes the cell again")
    column = pl.col(headline(bool(row.get("exclude_history"))))  # absent in cells published before both were written
    rank, hit = column.cast(pl.Float64), (column <= cutoff).cast(pl.Float64)
    gain = hit / (rank + 1).log(2)
    return pl.read_parquet(file).select("seed", "user_id", gain.alias(f"NDCG@{cutoff}"), hit.alias(f"HR@{cutoff}"))


def comparisons(rows: pl.DataFrame, cutoff: int, unusable: pl.DataFrame) -> pl.DataFrame:
    """`compare`, block by block, with the block's columns in front; empty where no block has two adapters."""
    found = []
    for block in rows.partition_by(BLOCK, maintain_order=True):
        compared = compare(block, cutoff, unusable.join(block, on=BLOCK, how="semi"))
        if compared.height:
            found.append(compared.select(*(pl.lit(block[name][0]).alias(name) for name in BLOCK), pl.all()))
    return pl.concat(found) if found else pl.DataFrame()


def compare(rows: pl.DataFrame, cutoff: int, unusable: pl.DataFrame) -> pl.DataFrame:
    """The leader against every other adapter: means, improvement with interval, p-values; a row per metric and other adapter.

    Compared are the adapters that every block of `rows` has, by the mean over blocks of the mean over users; a user's figure is
    the mean over seeds. The leader has the highest NDCG of those without an unusable run, where there are any.

    `p` is two-sided, of a sign-flip permutation test over users, in which all figures of a user change sides together; `p_holm`
    is adjusted for the other adapters of the same metric. `low` and `high` bound the improvement, a 95 % bootstrap interval over
    the users of each dataset. `std` and `std_other`, over seeds, are chance in training, which the test does not know. Empty
    where fewer than two adapters are in every block. UserError where a cell lacks its ranks, or cells hold different users.
    """
    names = [f"NDCG@{cutoff}", f"HR@{cutoff}"]
    blocks = rows.partition_by(BLOCK, maintain_order=True)
    adapters = [name for name in rows["adapter"].unique(maintain_order=True) if all(name in b["adapter"] for b in blocks)]
    if len(adapters) < 2:
        return pl.DataFrame()
    shares, strata = _user_shares(blocks, adapters, names, cutoff)
    means = shares.sum(0)  # (A, M)
    usable = [i for i, name in enumerate(adapters) if name not in unusable["adapter"]] or list(range(len(adapters)))
    best = max(usable, key=lambda i: means[i, 0])
    others = [i for i in range(len(adapters)) if i != best]
    p_values = sign_flip_p_values(np.hstack([shares[:, [best], m] - shares[:, others, m] for m in range(len(names))]))
    seeds = rows.filter(pl.col("adapter").is_in(adapters)).group_by(KEYS).len()["len"].min()
    by_seed = rows.group_by("adapter", "seed", maintain_order=True).agg(pl.col(name).mean() for name in names)  # over blocks
    found = []
    for m, (name, p) in enumerate(zip(names, np.split(p_values, len(names)), strict=True)):
        spread = dict(by_seed.group_by("adapter").agg(pl.col(name).std()).rows())
        intervals = improvement_intervals(shares[:, best, m], shares[:, others, m], strata)
        adjusted = holm(p)
        mean = float(means[best, m])
        for i, other in enumerate(others):
            theirs = float(means[other, m])
            found.append(
                {"metric": name, "leader": adapters[best], "other": adapters[other]}
                | {"mean": mean, "std": spread[adapters[best]], "mean_other": theirs, "std_other": spread[adapters[other]]}
                | {"difference": mean - theirs, "improvement": mean / theirs - 1 if theirs else None}
                | {"low": intervals[i, 0], "high": intervals[i, 1], "p": p[i], "p_holm": adjusted[i]}
                | {"users": len(shares), "seeds": seeds}
            )
    types = dict.fromkeys(("std", "std_other", "improvement"), pl.Float64)
    return pl.DataFrame(found, infer_schema_length=None, schema_overrides=types)


def _user_shares(blocks: list[pl.DataFrame], adapters: list[str], names: list[str], cutoff: int) -> tuple[np.ndarray, np.ndarray]:
    """What each user adds to the mean over blocks: (U, A, M), whose sum over users is this mean; and each user's dataset (U,).

    Example: of two backbones on a dataset of 100 users, a user with NDCGs of 0.5 and 0.3 adds (0.5 + 0.3) / (2 x 100).
    """
    users: dict[str, pl.Series] = {}
    shares: dict[str, np.ndarray] = {}
    for block in blocks:
        dataset = block["dataset"][0]
        cells = {row["adapter"]: row for row in block.unique("adapter", keep="first", maintain_order=True).iter_rows(named=True)}
        figures = []
        for adapter in adapters:
            frame = user_figures(cells[adapter], cutoff).group_by("user_id").mean().sort("user_id")
            if not users.setdefault(dataset, frame["user_id"]).equals(frame["user_id"]):
                raise UserError(f"the cells of {dataset} hold different users; `dvc repro grid/dvc.yaml` makes them again")
            figures.append(frame.select(names).to_numpy())
        added = np.stack(figures, axis=1) / (len(blocks) * len(users[dataset]))
        shares[dataset] = shares[dataset] + added if dataset in shares else added
    strata = np.repeat(np.arange(len(shares)), [len(part) for part in shares.values()])
    return np.concatenate(list(shares.values())), strata


def grouped(rows: pl.DataFrame, cutoff: int) -> pl.DataFrame:
    """Test quality by popularity of the target and by length of the history: mean, standard deviation over seeds, users."""
    found = []
    for dataset, cells in rows.unique(KEYS, keep="first", maintain_order=True).group_by("dataset", maintain_order=True):
        groups = user_groups(str(dataset[0]))
        for row in cells.iter_rows(named=True):
            users = user_figures(row, cutoff).join(groups, on="user_id", how="inner")
            found.append(
                users.unpivot(
                    on=[f"NDCG@{cutoff}", f"HR@{cutoff}"],
                    index=["seed", "by", "place", "group"],
                    variable_name="metric",
                    value_name="value",
                )
                .group_by("by", "place", "group", "metric", "seed")
                .agg(pl.col("value").mean(), users=pl.len())
                .group_by("by", "place", "group", "metric")
                .agg(pl.col("users").first(), mean=pl.col("value").mean(), std=pl.col("value").std())
                .sort("by", "place", "metric", descending=[True, False, True])
                .select(*(pl.lit(row[key]).alias(key) for key in KEYS), pl.exclude("place"))
            )
    return pl.concat(found)


def user_groups(dataset: str) -> pl.DataFrame:
    """Two rows per user: `by` popularity and `by` history, with the group's name and its place in the order.

    Popularity is that of the test item, in training interactions. Head: the most popular items, up to a third of all training
    interactions; mid: up to two thirds; tail: the rest, and items without any. Items equally popular are in the same group.
    History is the number of training items, cut at its quartiles.
    """
    users, n_items = read_sequences(sequences_directory(dataset))
    counts = popularity(users, n_items)
    more_popular = _interactions_above(counts)  # (N,)
    third = np.minimum(2, 3 * more_popular // max(1, counts.sum()))
    third[counts == 0] = 2
    length = users["items"].list.len().cast(pl.Int64).to_numpy() - 2
    edges = sorted({*np.quantile(length, [0.25, 0.5, 0.75], method="lower").astype(int).tolist()} - {int(length.max())})
    names = [_range(low + 1, high) for low, high in zip([length.min() - 1, *edges], [*edges, length.max()], strict=True)]
    bins = np.searchsorted(edges, length)
    target = users["items"].list.last().to_numpy()
    by_popularity = {"place": third[target], "group": [("head", "mid", "tail")[place] for place in third[target]]}
    by_length = {"place": bins, "group": [names[place] for place in bins]}
    return pl.concat(
        pl.DataFrame({"user_id": users["user_id"], "by": [by] * users.height} | columns).cast({"place": pl.Int64})
        for by, columns in (("popularity", by_popularity), ("history", by_length))
    )


def _interactions_above(counts: np.ndarray) -> np.ndarray:
    """Interactions on items more popular than each item. (N,)"""
    values, inverse, items = np.unique(counts, return_inverse=True, return_counts=True)
    total = values * items
    above: np.ndarray = (total[::-1].cumsum()[::-1] - total)[inverse]
    return above


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}–{high}"
