"""Who leads in each published block, and how far one adapter is from the best other one: comparisons.csv, and tables of it."""

import polars as pl

from common.errors import UserError
from models.adapters import ADAPTERS
from pipeline.grid.cells import BLOCK
from pipeline.grid.published import PUBLISHED, read_table
from pipeline.params import Train
from pipeline.report.conclusions import is_tie
from pipeline.report.paper import paper_table
from pipeline.report.results import unusable_runs
from pipeline.report.tables import title
from pipeline.report.users import comparisons
from pipeline.training.metrics import ALL_ITEMS

COMPARISONS = "comparisons.csv"
EVERY, PAPER = "every", "paper"  # among which adapters the leader is sought: every one, or those of the paper


def compared(rows: pl.DataFrame, cutoff: int, train: Train) -> pl.DataFrame:
    """Return `users.comparisons` among every adapter and among the paper's (column `among`), for every ranking that was tested.

    The metrics of a ranking that the tables do not show have its name in front: `dot_NDCG@20`, `without_history_NDCG@20`.
    rows: a row per run, from `read_cells`, of the cells with the settings of params.yaml. Empty if no block has two adapters.
    """
    papers = rows.filter(pl.col("adapter").is_in(paper_table()["adapter"].unique().to_list()))
    shown = f"_NDCG@{cutoff}"
    names = [name.removesuffix(shown) for name in rows.columns if name.endswith(shown) and not name.startswith("validation")]
    tables = []
    for among, part in ((EVERY, rows), (PAPER, papers)):
        for name in ("", *names) if part.height else ():
            ranking = None if not name else ALL_ITEMS if name == "with_history" else f"{ALL_ITEMS}_{name}"
            table = comparisons(part.with_columns(ranking=pl.lit(ranking)), cutoff, unusable_runs(part, train))
            if table.height:
                prefix = f"{name}_" if name else ""
                tables.append(
                    table.select(pl.lit(among).alias("among"), pl.all()).with_columns(metric=pl.lit(prefix) + pl.col("metric"))
                )
    return pl.concat(tables) if tables else pl.DataFrame(schema=dict.fromkeys(("among", *BLOCK, "metric"), pl.String))


def level_table(among: str, folders: dict[str, str], metrics: list[str]) -> str:
    """Return a Markdown table with a row per metric and a column per folder: the leader and those level with it.

    The leader is that by NDCG of each ranking, also in a row of HR. folders: as in `leaders_table`.
    """
    columns = [{metric: _rows(folder, among, metric) for metric in metrics} for folder in folders.values()]
    lines = ["| | " + " | ".join(folders) + " |", "|---|" + "---|" * len(folders)]
    for metric in metrics:
        entries = []
        for rows in (column[metric] for column in columns):
            entries.append(", ".join(map(title, [rows[0]["leader"], *(row["other"] for row in rows if is_tie(row))])))
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


def leaders_table(adapter: str, among: str, folders: dict[str, str], metric: str) -> str:
    """Return a Markdown table with a row per folder: the leader, who is level with it, and `adapter` against the best other one.

    folders: folder of docs/results by heading, each of one dataset and backbone. Raises UserError for an adapter or a name of
    `among` that do not exist, and for a folder without such comparisons.
    """
    if adapter not in ADAPTERS:
        raise UserError(f"leaders: there is no adapter {adapter}")
    lines = [
        f"| | Seeds | Leader | Level with it | {title(adapter)} to the best other | 95 % interval | p |",
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
            gain, low, high = (1 / (1 + value) - 1 for value in (gain, high, low))
        cells = [f"[{heading}](results/{folder}/report.md)", str(rows[0]["seeds"]), title(leader), level or "–"]
        figures = [f"{100 * gain:+.1f} %", f"{100 * low:+.1f} to {100 * high:+.1f} %", f"{against['p_holm']:.4f}"]
        lines.append("| " + " | ".join([*cells, *figures]) + " |")
    return "\n".join(lines) + "\n"


def _rows(folder: str, among: str, metric: str) -> list[dict]:
    """Return the comparisons of a folder's leader with the others, the best first."""
    if among not in (EVERY, PAPER):
        raise UserError(f"the leader is sought among {EVERY} or {PAPER}, not {among}")
    file = PUBLISHED / folder / COMPARISONS
    rows = read_table(file).filter(among=among, metric=metric).sort("mean_other", descending=True, maintain_order=True)
    if rows.n_unique(BLOCK) != 1:
        raise UserError(f"{file}: not one pair of dataset and backbone with {metric} among {among} adapters")
    return rows.to_dicts()
