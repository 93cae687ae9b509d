"""Who leads in each published block, and how far one adapter is from the best other one: comparisons.csv, and tables of it."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import polars as pl

from common.errors import UserError
from common.names import check_form
from common.words import enumeration
from models.adapters import ADAPTERS
from pipeline.grid.cells import PAIR
from pipeline.grid.published import PUBLISHED, read_runs, read_table
from pipeline.grid.tuning import TUNED
from pipeline.params import Train
from pipeline.report.conclusions import is_tie
from pipeline.report.paper import paper_table
from pipeline.report.results import unusable_runs
from pipeline.report.titles import title
from pipeline.report.users import comparisons
from pipeline.training.metrics import ALL_ITEMS

COMPARISONS = "comparisons.csv"
EVERY, PAPER = "every", "paper"  # among which adapters the leader is sought: every one, or those of the paper
SET = re.compile(r"tuned/(?P<folder>[^ /]+)/(?P<loss>[^ /]+)|(?P<plain>[^ /]+)")
PROTOCOL = ("similarity", "exclude_history", "loss")  # what has to be the same in all folders of a table


@dataclass(frozen=True)
class PublishedSet:
    """The adapters of a folder in docs/results with the settings of params.yaml (`loss` is None), or tuned under `loss`."""

    folder: Path
    loss: str | None = None

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the set that a document calls `FOLDER` or `tuned/FOLDER/LOSS`. Raises UserError for another name."""
        match = SET.fullmatch(name)
        if match is None:
            raise UserError(f"{name!r} is no published folder; write FOLDER or tuned/FOLDER/LOSS")
        return cls(PUBLISHED / check_form("folder", match["plain"] or match["folder"]), match["loss"])

    def runs(self) -> pl.DataFrame:
        """Return its rows of runs.csv."""
        runs = read_runs(self.folder)
        return runs.filter(over="tuned", loss=self.loss) if self.loss else runs.filter(over="seeds")


def comparisons_file(loss: str | None) -> str:
    """Return the file of the comparisons among adapters tuned under `loss`, or not tuned, seen from their published folder."""
    return f"{TUNED.name}/comparisons-{loss}.csv" if loss else COMPARISONS


def comparison_files(rows: pl.DataFrame, cutoff: int, train: Train) -> dict[str, bytes]:
    """Return the comparisons of the default settings, and of each loss with tuned adapters, as CSV by file name.

    rows: a row per run, from `read_cells`; those of variants and other dims are ignored.
    """
    tuned = rows.filter(over="tuned")
    sets = {None: rows.filter(over="seeds")} | {
        loss: tuned.filter(loss=loss) for loss in tuned["loss"].unique(maintain_order=True)
    }
    return {comparisons_file(loss): compared(part, cutoff, train).write_csv().encode() for loss, part in sets.items()}


def paper_adapters() -> list[str]:
    """Return the adapters that the paper compares."""
    return paper_table()["adapter"].unique(maintain_order=True).to_list()


def compared(rows: pl.DataFrame, cutoff: int, train: Train) -> pl.DataFrame:
    """Return `users.comparisons` among every adapter and among the paper's (column `among`), for every ranking that was tested.

    The metrics of a ranking that the tables do not show have its name in front: `dot_NDCG@20`, `without_history_NDCG@20`; a
    ranking that some cell lacks is left out. rows: a row per run of one set, from `read_cells`. As in a
    verdict, adapters with unusable runs are left out. Empty if no block has two adapters.
    """
    papers = rows.filter(pl.col("adapter").is_in(paper_adapters()))
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


def level_table(among: str, sets: dict[str, PublishedSet], metrics: list[str]) -> str:
    """Return a Markdown table with a row per metric and a column per set: the leader, those level with it and those above.

    The leader is that by NDCG of each ranking, also in a row of HR, so another adapter may be significantly above it there.
    sets: as in `leaders_table`. Raises UserError as that does.
    """
    _check_protocol(sets)
    columns = [{metric: _rows(of, among, metric) for metric in metrics} for of in sets.values()]
    lines = ["| | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
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


def leaders_table(adapter: str, among: str, sets: dict[str, PublishedSet], metric: str, where: str) -> str:
    """Return a Markdown table with a row per set: the leader, who is level with it, and `adapter` against the best other one.

    sets: by heading, each of one dataset and backbone. metric: NDCG of some ranking, which decides who leads. where: the
    document, for relative links. Raises UserError for an adapter, a metric or a name of `among` that do not exist, for a set
    without such comparisons, and for sets whose runs were trained or ranked in different ways.
    """
    if adapter not in ADAPTERS:
        raise UserError(f"leaders: there is no adapter {adapter}")
    if not metric.rpartition("_")[2].startswith("NDCG"):
        raise UserError(f"leaders: {metric} does not decide who leads; choose NDCG of a ranking, such as dot_NDCG@20")
    _check_protocol(sets)
    lines = [
        f"| | Seeds | Leader | Level with it | {title(adapter)} vs. best other | 95 % interval | p |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for heading, of in sets.items():
        rows = _rows(of, among, metric)
        leader = rows[0]["leader"]
        against = rows[0] if leader == adapter else next((row for row in rows if row["other"] == adapter), None)
        if against is None:
            raise UserError(f"{of.folder}: {adapter} is not among its adapters")
        level = ", ".join(title(row["other"]) for row in rows if is_tie(row))
        if against["improvement"] is None:
            raise UserError(f"{of.folder}: {metric} of {against['other']} is 0, so nothing is relative to it")
        gain, low, high = (against[name] for name in ("improvement", "low", "high"))  # of the leader over the other
        if leader != adapter:
            gain, low, high = (1 / (1 + value) - 1 if value > -1 else math.inf for value in (gain, high, low))
        report = Path(os.path.relpath(of.folder / "report.md", Path(where).parent)).as_posix()
        cells = [f"[{heading}]({report})", str(rows[0]["seeds"]), title(leader), level or "–"]
        figures = [f"{100 * gain:+.1f} %", f"{100 * low:+.1f} to {100 * high:+.1f} %", f"{against['p_holm']:.4f}"]
        lines.append("| " + " | ".join([*cells, *figures]) + " |")
    return "\n".join(lines) + "\n"


def _rows(of: PublishedSet, among: str, metric: str) -> list[dict]:
    """Return the comparisons of a set's leader with the others, the best first."""
    if among not in (EVERY, PAPER):
        raise UserError(f"the leader is sought among {EVERY} or {PAPER}, not {among}")
    name = comparisons_file(of.loss)
    rows = read_table(of.folder, name).filter(among=among, metric=metric)
    if rows.n_unique(PAIR) != 1:
        raise UserError(f"{of.folder / name}: not one pair of dataset and backbone with {metric} among {among} adapters")
    _check_leader(of, among, rows, metric)
    return rows.sort("mean_other", descending=True, maintain_order=True).to_dicts()


def _check_leader(of: PublishedSet, among: str, rows: pl.DataFrame, metric: str) -> None:
    """Raise UserError if an adapter that takes no part in the comparisons, for its unusable runs, is above the leader by NDCG.

    rows: the comparisons of one metric, which need not be the one that decides.
    """
    ndcg = metric.replace("HR@", "NDCG@")
    runs = of.runs().join(rows.select(PAIR).unique(), on=PAIR, how="semi")
    means = runs.group_by("adapter", maintain_order=True).agg(pl.col(ndcg).mean())
    candidates = paper_adapters() if among == PAPER else means["adapter"].to_list()
    leader = rows["leader"][0]
    scores = {name: mean for name, mean in means.iter_rows() if name in candidates and name not in rows["other"]}
    if above := [title(name) for name, mean in scores.items() if leader in scores and mean > scores[leader]]:
        raise UserError(
            f"{of.folder}: {enumeration(above)} scored above {title(leader)} by {ndcg}, with runs that were ended by "
            "`train.epochs` or never learned, so nobody leads; train again with more epochs"
        )


def _check_protocol(sets: dict[str, PublishedSet]) -> None:
    """Raise UserError if the runs of some sets were trained or ranked in other ways than those of the others."""
    ways: dict[tuple, Path] = {}
    for of in sets.values():
        if missing := [name for name in PROTOCOL if name not in of.runs().columns]:
            raise UserError(f"{of.folder}: its runs are of an older version, which did not record {', '.join(missing)}")
        for way in of.runs().select(PROTOCOL).unique().rows():
            ways.setdefault(way, of.folder)
    if len(ways) > 1:
        (one, first), (other, second) = list(ways.items())[:2]
        name, *values = next((name, a, b) for name, a, b in zip(PROTOCOL, one, other, strict=True) if a != b)
        raise UserError(f"{name} is {values[0]} in {first} and {values[1]} in {second}")
