"""Who leads in each published block, and how far one adapter is from the best other one: comparisons.csv, and tables of it."""

import math
import os
from pathlib import Path

import polars as pl

from common.errors import UserError
from models.adapters import ADAPTERS
from pipeline.grid.cells import PAIR
from pipeline.grid.published import PUBLISHED, read_runs, read_table
from pipeline.params import Train
from pipeline.report.conclusions import is_tie
from pipeline.report.paper import paper_table
from pipeline.report.results import unusable_runs
from pipeline.report.titles import title
from pipeline.report.users import comparisons
from pipeline.training.metrics import ALL_ITEMS

COMPARISONS = "comparisons.csv"
EVERY, PAPER = "every", "paper"  # among which adapters the leader is sought: every one, or those of the paper
PROTOCOL = ("similarity", "exclude_history", "loss")  # what has to be the same in all folders of a table


def compared(rows: pl.DataFrame, cutoff: int, train: Train) -> pl.DataFrame:
    """Return `users.comparisons` among every adapter and among the paper's (column `among`), for every ranking that was tested.

    The metrics of a ranking that the tables do not show have its name in front: `dot_NDCG@20`, `without_history_NDCG@20`; a
    ranking that some cell lacks is left out. rows: a row per run, from `read_cells`, of the cells with the settings of
    params.yaml. As in a verdict, adapters with unusable runs are left out. Empty if no block has two adapters.
    """
    papers = rows.filter(pl.col("adapter").is_in(paper_table()["adapter"].unique().to_list()))
    metrics = (f"NDCG@{cutoff}", f"HR@{cutoff}")
    others = [name for name in rows.columns if name.endswith(f"_{metrics[0]}") and not name.startswith("validation")]
    prefixes = ["", *(name.removesuffix(metrics[0]) for name in others if not rows[name].has_nulls())]
    unusable = unusable_runs(rows, train).select(*PAIR, "adapter").unique()
    tables = []
    for among, part in ((EVERY, rows), (PAPER, papers)):
        for prefix in prefixes if part.height else ():
            name = prefix.removesuffix("_")
            ranking = None if not name else ALL_ITEMS if name == "with_history" else f"{ALL_ITEMS}_{name}"
            of_ranking = part.with_columns(pl.lit(ranking).alias("ranking"), *(pl.col(prefix + m).alias(m) for m in metrics))
            table = comparisons(of_ranking, cutoff, unusable)
            if table.height:
                named = table.with_columns(metric=pl.lit(prefix) + pl.col("metric"))
                tables.append(named.select(pl.lit(among).alias("among"), pl.all()))
    if not tables:
        return pl.DataFrame(schema=dict.fromkeys(("among", *PAIR, "metric"), pl.String))
    left_out = [unusable.rename({"adapter": role}) for role in ("leader", "other")]
    table = pl.concat(tables)
    for part in left_out:
        table = table.join(part, on=part.columns, how="anti", maintain_order="left")
    return table


def level_table(among: str, folders: dict[str, str], metrics: list[str]) -> str:
    """Return a Markdown table with a row per metric and a column per folder: the leader, those level with it and those above.

    The leader is that by NDCG of each ranking, also in a row of HR, so another adapter may be significantly above it there.
    folders: as in `leaders_table`. Raises UserError as that does.
    """
    _check_protocol(folders)
    columns = [{metric: _rows(folder, among, metric) for metric in metrics} for folder in folders.values()]
    lines = ["| | " + " | ".join(folders) + " |", "|---|" + "---|" * len(folders)]
    for metric in metrics:
        entries = []
        for rows in (column[metric] for column in columns):
            level = ", ".join(map(title, [rows[0]["leader"], *(row["other"] for row in rows if is_tie(row))]))
            above = ", ".join(title(row["other"]) for row in rows if row["difference"] < 0 and not is_tie(row))
            entries.append(f"{level}; above: {above}" if above else level)
        lines.append(f"| {_said(metric)} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def _said(metric: str) -> str:
    """Return a metric with its ranking in words: "NDCG@20, history not ranked" for without_history_NDCG@20."""
    ranking, _, name = metric.rpartition("_")
    how = {
        "without_history": "history not ranked",
        "with_history": "history ranked",
        "dot": "by dot product",
        "cosine": "by cosine",
    }
    return f"{name}, {how.get(ranking, ranking)}" if ranking else name


def leaders_table(adapter: str, among: str, folders: dict[str, str], metric: str, where: str) -> str:
    """Return a Markdown table with a row per folder: the leader, who is level with it, and `adapter` against the best other one.

    folders: folder of docs/results by heading, each of one dataset and backbone. metric: NDCG of some ranking, which decides who
    leads. where: the document, for relative links. Raises UserError for an adapter, a metric or a name of `among` that do not
    exist, for a folder without such comparisons, and for folders whose runs were trained or ranked in different ways.
    """
    if adapter not in ADAPTERS:
        raise UserError(f"leaders: there is no adapter {adapter}")
    if not metric.rpartition("_")[2].startswith("NDCG"):
        raise UserError(f"leaders: {metric} does not decide who leads; choose NDCG of a ranking, such as dot_NDCG@20")
    _check_protocol(folders)
    lines = [
        f"| | Seeds | Leader | Level with it | {title(adapter)} vs. best other | 95 % interval | p |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for heading, folder in folders.items():
        rows = _rows(folder, among, metric)
        leader = rows[0]["leader"]
        against = rows[0] if leader == adapter else next((row for row in rows if row["other"] == adapter), None)
        if against is None:
            raise UserError(f"{PUBLISHED / folder}: {adapter} is not among its adapters")
        level = ", ".join(title(row["other"]) for row in rows if is_tie(row))
        if against["improvement"] is None:
            raise UserError(f"{PUBLISHED / folder}: {metric} of {against['other']} is 0, so nothing is relative to it")
        gain, low, high = (against[name] for name in ("improvement", "low", "high"))  # of the leader over the other
        if leader != adapter:
            gain, low, high = (1 / (1 + value) - 1 if value > -1 else math.inf for value in (gain, high, low))
        report = Path(os.path.relpath(PUBLISHED / folder / "report.md", Path(where).parent)).as_posix()
        cells = [f"[{heading}]({report})", str(rows[0]["seeds"]), title(leader), level or "–"]
        figures = [f"{100 * gain:+.1f} %", f"{100 * low:+.1f} to {100 * high:+.1f} %", f"{against['p_holm']:.4f}"]
        lines.append("| " + " | ".join([*cells, *figures]) + " |")
    return "\n".join(lines) + "\n"


def _rows(folder: str, among: str, metric: str) -> list[dict]:
    """Return the comparisons of a folder's leader with the others, the best first."""
    if among not in (EVERY, PAPER):
        raise UserError(f"the leader is sought among {EVERY} or {PAPER}, not {among}")
    file = PUBLISHED / folder / COMPARISONS
    rows = read_table(file).filter(among=among, metric=metric)
    if rows.n_unique(PAIR) != 1:
        raise UserError(f"{file}: not one pair of dataset and backbone with {metric} among {among} adapters")
    return rows.sort("mean_other", descending=True, maintain_order=True).to_dicts()


def _check_protocol(folders: dict[str, str]) -> None:
    """Raise UserError if the runs of some folders were trained or ranked in other ways than those of the others."""
    ways: dict[tuple, str] = {}
    for folder in folders.values():
        for way in read_runs(PUBLISHED / folder).filter(over="seeds").select(PROTOCOL).unique().rows():
            ways.setdefault(way, folder)
    if len(ways) > 1:
        (one, first), (other, second) = list(ways.items())[:2]
        name, *values = next((name, a, b) for name, a, b in zip(PROTOCOL, one, other, strict=True) if a != b)
        raise UserError(f"{name} is {values[0]} in {PUBLISHED / first} and {values[1]} in {PUBLISHED / second}")
