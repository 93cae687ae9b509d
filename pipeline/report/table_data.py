"""The data of Table 1 and of Tables 3 to 6, from the rows of the cells. `results` has the data of Table 2."""

from pathlib import Path

import polars as pl

from pipeline.artifacts import read_json
from pipeline.grid.cells import KEYS, PAIR, SPECTRAN
from pipeline.params import Grid
from pipeline.report.paper import paper_table
from pipeline.runs import sequences_directory

VARIANT_KEYS = [*PAIR, "variant"]
DIMENSION_KEYS = [*PAIR, "dim", "adapter"]


def variant_rows(rows: pl.DataFrame, grid: Grid, default_variant: str) -> pl.DataFrame:
    """Return the runs of Table 3: Base, SpecTran and its variants, named by `variant`.

    default_variant: SpecTran's variant in the cells of Table 2, from which Base and SpecTran are taken.
    """
    here = rows.filter(pl.col("dataset").is_in(grid.ablations.datasets) & pl.col("backbone").is_in(grid.ablations.backbones))
    reference = here.filter((pl.col("over") == "seeds") & pl.col("adapter").is_in(["base", SPECTRAN]))
    variant = pl.when(pl.col("adapter") == SPECTRAN).then(pl.lit(default_variant)).otherwise(pl.lit("base"))
    both = pl.concat([reference.with_columns(variant=variant), here.filter(pl.col("over") == "variants")], how="diagonal_relaxed")
    both = both.with_columns(variant=pl.col("variant").replace("full", SPECTRAN))
    runs = both.unique([*VARIANT_KEYS, "seed"], keep="first", maintain_order=True)
    order = {name: i for i, name in enumerate(["base", SPECTRAN, *grid.ablations.variants])}
    return _in_order(runs, {"dataset": grid.ablations.datasets, "backbone": grid.ablations.backbones, "variant": list(order)})


def dimension_rows(rows: pl.DataFrame, grid: Grid) -> pl.DataFrame:
    """Return the runs of Table 4: the adapters of `grid.dimensions` at its dims and at `grid.dim`."""
    lists = grid.dimensions
    here = rows.filter(
        pl.col("over").is_in(["seeds", "dims"])
        & pl.col("dataset").is_in(lists.datasets)
        & pl.col("backbone").is_in(lists.backbones)
        & pl.col("adapter").is_in(lists.adapters)
    )
    runs = here.unique([*DIMENSION_KEYS, "seed"], keep="first", maintain_order=True)
    dims = sorted({*lists.dims, grid.dim})
    return _in_order(runs, {"dataset": lists.datasets, "backbone": lists.backbones, "dim": dims, "adapter": lists.adapters})


def _in_order(rows: pl.DataFrame, lists: dict[str, list]) -> pl.DataFrame:
    """Sort rows by the position of their values in the lists of these columns, then by seed."""
    positions = [pl.col(name).replace_strict(values, range(len(values)), default=len(values)) for name, values in lists.items()]
    return rows.sort([*positions, "seed"], maintain_order=True)


def cost(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the data of Table 5 by cell: trainable parameters, seconds, epochs, threads, device, and the paper's numbers.

    Seconds and epochs are means over seeds. The paper's numbers are for Toys and SASRec; other cells have nulls.
    """
    seconds = ["training_seconds", "seconds_per_epoch", "inference_seconds"]
    measured = rows.group_by(KEYS, maintain_order=True).agg(
        pl.col("trainable_parameters").first(),
        *(pl.col(name).mean() for name in (*seconds, "epochs", "best_epoch")),
        training_seconds_std=pl.col("training_seconds").std(),
        threads=pl.col("threads").max(),
        device=pl.col("device").unique().sort().str.join(" and "),
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
    """Return the data of Table 6, by dataset, backbone and kind of weight, `principal` or `subordinate`.

    Columns: mean and std over seeds of SpecTran's mean weight, seeds, the paper's mean (for SASRec), and the difference.
    """
    learned = []
    for row in rows.filter(pl.col("adapter") == SPECTRAN).iter_rows(named=True):
        report = read_json(Path(row["run_directory"]) / "analysis.json", "evaluation")["learned"]
        kinds = {kind: report.get(f"{kind}_weight") for kind in ("principal", "subordinate")}
        learned += [{k: row[k] for k in (*PAIR, "seed")} | {"kind": kind, "value": value} for kind, value in kinds.items()]
    types = {"dataset": pl.String, "backbone": pl.String, "seed": pl.Int64, "kind": pl.String, "value": pl.Float64}
    paper = paper_table("table6").unpivot(index="dataset", variable_name="kind", value_name="paper")
    return (
        pl.DataFrame(learned, schema=types)
        .drop_nulls("value")
        .group_by([*PAIR, "kind"], maintain_order=True)
        .agg(mean=pl.col("value").mean(), std=pl.col("value").std(), seeds=pl.len())
        .join(paper.with_columns(backbone=pl.lit("sasrec")), on=[*PAIR, "kind"], how="left", maintain_order="left")
        .with_columns(difference=pl.col("mean") - pl.col("paper"))
    )


def sizes(datasets: list[str]) -> pl.DataFrame:
    """Return the data of Table 1, by dataset: users, items and interactions after all filters, the paper's, the differences."""
    counts = ["users", "items", "interactions"]
    measured = []
    for dataset in datasets:
        statistics = read_json(sequences_directory(dataset) / "statistics.json", f"the preprocess stage of {dataset}")
        measured.append({"dataset": dataset} | {name: statistics[name] for name in (*counts, "density")})
    paper = paper_table("table1").rename({name: f"paper_{name}" for name in counts})
    joined = pl.DataFrame(measured).join(paper, on="dataset", how="left", maintain_order="left")
    return joined.with_columns((pl.col(name) - pl.col(f"paper_{name}")).alias(f"difference_{name}") for name in counts)
