"""The line above the verdict: which data, encoder, dim and seeds the report is of, and which version of the code."""

import subprocess

import polars as pl

from common.words import plural
from pipeline.report.table_data import sizes
from pipeline.report.titles import title
from pipeline.runs import PACKAGES


def about(rows: pl.DataFrame) -> list[tuple[str, str]]:
    """Return what a report is of, as names and values. rows: the runs of Table 2."""
    counts = sizes(rows["dataset"].unique(maintain_order=True).to_list())
    data = "; ".join(
        ", ".join([title(row["dataset"]), *(plural(row[f"{noun}s"], noun) for noun in ("user", "item", "interaction"))])
        for row in counts.iter_rows(named=True)
    )
    values = {
        "Data": data,
        "Backbone": ", ".join(title(name) for name in rows["backbone"].unique(maintain_order=True)),
        "Encoder": ", ".join(map(str, rows["encoder"].unique(maintain_order=True))),
        "Dim": ", ".join(map(str, rows["dim"].unique(maintain_order=True))),
        "Runs": f"{plural(rows['seed'].n_unique(), 'seed')} of {rows['adapter'].n_unique()} adapters",
        "Report written by": code_version(),
    }
    return [(name, value) for name, value in values.items() if value]


def code_version() -> str:
    """Return the last commit that changed the code, with its date: "4270bbc, 2026-11-27"; "" outside a git checkout, or
    if the program git is missing.

    A commit of results alone does not change it, so the report that such a commit holds is the same when built again.
    """
    log = ["git", "log", "-1", "--format=%h, %cs", "--abbrev=7", "--", *PACKAGES]
    try:
        found = subprocess.run(log, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    status = ["git", "status", "--porcelain", "--", *PACKAGES]
    changed = subprocess.run(status, capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.strip():
        return ""
    return f"commit {found.stdout.strip()}" + (", with uncommitted changes" if changed.stdout.strip() else "")
