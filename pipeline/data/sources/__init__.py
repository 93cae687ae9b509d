"""Where interactions and titles come from: one module per kind of source.

Each has a subclass of `pipeline.data.Source`, named as the kind; `fetch(source, mirror, directory)`, which brings the raw files
into `directory`; and `read(source, directory) -> Raw`.
"""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl

from common.errors import UserError, first_line
from common.names import check_name
from pipeline.data import SOURCES
from pipeline.data.findings import Finding


@dataclass
class Raw:
    """Interactions (user_id, item_id, timestamp), items (item_id, title, other fields), and counts worth recording.

    time_unit: of the timestamps, s, ms, us or ns since 1970; findings: what reading the source has found.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    counts: dict[str, int] = field(default_factory=dict)
    time_unit: str = "s"
    findings: list[Finding] = field(default_factory=list)


def source_module(kind: str) -> Any:
    """Return the module of a kind of source, with its `fetch` and `read`. Raises UserError for an unknown kind."""
    return import_module(f"{__name__}.{check_name(SOURCES.kind, kind, SOURCES)}")


def write_parquet_pair(interactions: pl.DataFrame, items: pl.DataFrame, directory: Path) -> None:
    """The raw form of sources that have none of their own."""
    interactions.write_parquet(directory / "interactions.parquet")
    items.write_parquet(directory / "items.parquet")


def read_parquet_pair(directory: Path) -> Raw:
    """Read what `write_parquet_pair` wrote."""
    try:
        return Raw(pl.read_parquet(directory / "interactions.parquet"), pl.read_parquet(directory / "items.parquet"))
    except (FileNotFoundError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{directory} is incomplete ({first_line(error)}); download it again") from None
