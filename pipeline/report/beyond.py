"""What the recommended lists are like beside their accuracy: coverage, novelty and diversity."""

import polars as pl

from common.words import plural
from pipeline.evaluation.beyond import NAMES
from pipeline.grid.baselines import TITLES
from pipeline.grid.cells import PAIR
from pipeline.report.formats import Block, Entry, Table, number
from pipeline.report.results import summarise
from pipeline.report.titles import pair_title, title


def beyond_table(runs: pl.DataFrame, trivial: pl.DataFrame) -> Table | None:
    """The table of what the lists are like beside their accuracy; None if no run has the figures.

    runs: a row per run of Table 2; results that were published before the figures were measured have none.
    """
    if NAMES[0] not in runs.columns:
        return None
    measured = runs.drop_nulls(NAMES[0])
    if measured.is_empty():
        return None
    summary = summarise(measured, list(NAMES))
    blocks = []
    for block in summary.partition_by(PAIR, maintain_order=True):
        values = {(row["adapter"], row["metric"]): row for row in block.iter_rows(named=True)}
        rows = [
            [
                Entry(title(name)),
                *(_figure(metric, values[name, metric]["mean"], values[name, metric]["std"]) for metric in NAMES),
            ]
            for name in block["adapter"].unique(maintain_order=True)
        ]
        here = trivial.filter(pl.col("dataset") == block["dataset"][0]) if trivial.height else trivial
        footer = [
            [Entry(TITLES[row["adapter"]]), *(_figure(name, row.get(name)) for name in NAMES)]
            for row in here.iter_rows(named=True)
        ]
        heading = f"{pair_title(block)} ({plural(block['seeds'][0], 'seed')})"
        blocks.append(Block(heading, ["Adapter", *(name.capitalize() for name in NAMES)], rows, footer))
    excluded = "exclude_history" in measured.columns and bool(measured["exclude_history"][0])
    history = "items of the history left out" if excluded else "items of the history included"
    note = (
        f"Of the 20 items that are ranked first for each test user, {history}. Coverage: the share of the catalogue that is in "
        "somebody's list. Novelty: the mean of -log2 of the share of users who had the item in training. Diversity: the mean of "
        "1 - cosine of two items' embeddings. Defined as in RecTools 0.19; higher is not better by itself."
    )
    missing = [title(name) for name in runs["adapter"].unique(maintain_order=True) if name not in measured["adapter"]]
    notes = [note, *([f"Published before these figures were measured: {', '.join(missing)}."] if missing else [])]
    return Table("beyond", "Beyond accuracy", blocks, notes, summary.drop("paper", "difference"))


def _figure(name: str, value: float | None, std: float | None = None) -> Entry:
    if name == NAMES[0] and value is not None:
        return number(100 * value, ".1f", None if std is None else 100 * std, unit=" %")
    return number(value, ".3f", std)
