"""The table of items held out of training, which `python -m stages.cold` measures, beside popular and rare items."""

import polars as pl

from pipeline.grid.cells import PAIR
from pipeline.grid.held_out import read_figures
from pipeline.params import Params
from pipeline.report.formats import Block, Entry, Table, number
from pipeline.report.titles import title

METHODS = {"popularity": "Popularity", "nearest text": "Nearest text"}
GROUPS = ("head", "mid", "tail")
IDS = {"mean": ", IDs: mean", "zero": ", IDs: zero"}


def held_out_table(params: Params, runs: pl.DataFrame, grouped: pl.DataFrame, cutoff: int) -> tuple[Table | None, list[str]]:
    """Return the table, None if nothing was measured, and a sentence for each dataset that was measured otherwise.

    runs: a row per run of Table 2; grouped: of `users.grouped`. Raises UserError for a damaged artifact.
    """
    metric = f"NDCG@{cutoff}"
    header = [
        "Adapter",
        f"{metric}, held out",
        f"HR@{cutoff}, held out",
        f"{metric}, all items",
        *map(str.capitalize, GROUPS),
    ]
    blocks, frames, notes = [], [], []
    by_popularity = grouped.filter(by="popularity", metric=metric)
    for dataset, backbone, encoder, dim in runs.select(*PAIR, "encoder", "dim").unique(maintain_order=True).iter_rows():
        block = by_popularity.filter(dataset=dataset, backbone=backbone)
        found, why = read_figures(params, dataset, encoder, backbone, dim)
        notes += [f"Held-out items: {why}."] * bool(why)
        if found is None:
            continue
        if f"held_out_{metric}" not in found.columns:
            notes.append(f"Held-out items: {metric} was not measured for {title(dataset)}.")
            continue
        known = {(row["adapter"], row["group"]): row["mean"] for row in block.iter_rows(named=True)}
        rows = []
        for row in found.sort(f"held_out_{metric}", descending=True, maintain_order=True).iter_rows(named=True):
            name = METHODS.get(row["method"]) or f"{title(row['method'])}{IDS.get(row['ids'], '')}"
            figures = [row[f"held_out_{metric}"], row[f"held_out_HR@{cutoff}"], row[metric]]
            figures += [known.get((row["method"], group)) for group in GROUPS]
            rows.append([Entry(name), *(number(value) for value in figures)])
        blocks.append(Block(f"{title(dataset)}, {title(backbone)}", header, rows, sorted_by=1))
        frames.append(found.select(pl.lit(dataset).alias("dataset"), pl.lit(backbone).alias("backbone"), pl.all()))
    if not blocks:
        return None, notes
    note = (
        "Each adapter was trained again without the held-out items, which it then ranks by their text, for the users whose test "
        "item is one of them: among the held-out items, and among all. One seed. IDs: what stands for the ID of an item without "
        f"interactions. Head, mid and tail: {metric} of the runs of Table 2, by popularity of the test item."
    )
    return Table("held-out", "Items held out of training", blocks, [note], pl.concat(frames)), notes
