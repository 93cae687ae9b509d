"""The leaderboard: every adapter by NDCG, the highest first, with its gain over Base; as a table and as plain text."""

import polars as pl

from common.words import plural
from pipeline.grid.cells import KEYS, PAIR
from pipeline.report.canvas import panel_title
from pipeline.report.formats import ABSENT, Block, Entry, Table, number, percent, plain_lines
from pipeline.report.gains import ALL_PAIRS
from pipeline.report.results import ResultSet
from pipeline.report.significance import SIGNIFICANT
from pipeline.report.titles import interval, title

CUT = "‡"


def leaderboard(gains: pl.DataFrame, result_set: ResultSet, metric: str, hits: str) -> Table:
    """Return the leaderboard of each block, and first that of the mean over blocks if there are several.

    gains: from `gains.over_base`, of the same cells; metric, hits: the names of NDCG and HR at the largest cutoff.
    """
    unusable = result_set.unusable
    others = result_set.summary.filter(pl.col("metric") == hits).select(*KEYS, hits="mean")
    blocks = []
    marked = False
    for block in gains.partition_by(PAIR, maintain_order=True):
        overall = block["dataset"][0] == ALL_PAIRS
        here = {} if overall else {key: block[key][0] for key in PAIR}
        compared = result_set.overall if overall else _of(result_set.comparisons, here)
        found = dict(compared.filter(pl.col("metric") == metric).select("other", "p_holm").rows()) if compared.height else {}
        leader = compared["leader"][0] if compared.height else None
        hit_rates = dict(_of(others, here).group_by("adapter").agg(pl.col("hits").mean()).rows())
        unfit = set(_of(unusable, here)["adapter"])
        rows = []
        for row in block.iter_rows(named=True):
            name = row["adapter"]
            marked |= name in unfit
            shown = Entry(interval(row), row["low"]) if row["low"] is not None else ABSENT
            rows.append(
                [
                    Entry(f"{title(name)}{f' {CUT}' if name in unfit else ''}"),
                    number(row["mean"], mark="best" if name == leader else ""),
                    *((percent(row["gain"], 1), shown) if name != "base" else (ABSENT, ABSENT)),
                    number(hit_rates.get(name)),
                    number(None if name in unfit else found.get(name)),
                ]
            )
        header = ["Adapter", metric, "over Base", "95 % interval", hits, "p vs. leader"]
        heading = f"{panel_title(block)} ({plural(block['users'][0], 'user')}, {plural(min(block['seeds'].to_list()), 'seed')})"
        blocks.append(Block(heading, header, rows, sorted_by=1))
    notes = [
        "Bold: the leader. The third and fourth columns hold the relative gain over Base and its bootstrap interval over "
        "users. The last one tests the difference from the leader, by a permutation test over users, adjusted by Holm; "
        "chance may explain "
        f"a difference whose p is {SIGNIFICANT} or more."
    ]
    notes += [f"{CUT} A run was ended by `train.epochs` or never learned: nothing is concluded from it."] if marked else []
    return Table("leaderboard", "Leaderboard", blocks, notes, gains)


def _of(frame: pl.DataFrame, here: dict[str, str]) -> pl.DataFrame:
    """Return the rows of a block; all rows for the mean over blocks."""
    keys = [key for key in here if key in frame.columns]
    return frame.filter(*(pl.col(key) == here[key] for key in keys)) if frame.height and keys else frame


def plain(table: Table) -> str:
    """Return a table as text for a terminal."""
    return "\n\n".join(
        f"{block.heading}\n\n{plain_lines([block.header, *([entry.text for entry in row] for row in block.rows)])}"
        for block in table.blocks
    )
