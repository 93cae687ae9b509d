"""A user's own catalogue and click log, as Parquet or CSV."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from common.errors import UserError, did_you_mean
from pipeline.artifacts import main_checkout
from pipeline.data import Source, Ties
from pipeline.data.sources import Raw, read_parquet_pair, write_parquet_pair

INTERACTIONS = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
ITEMS = {"item_id": pl.String, "title": pl.String}


class Files(Source):
    """The two tables of a user's own dataset."""

    kind: Literal["files"]
    interactions: str = Field(description="Parquet or CSV: user_id, item_id, timestamp (seconds)")
    items: str = Field(description="Parquet or CSV: item_id, title; its other columns are fields for the template")
    ties: Ties = Field("file", description="instead of `preprocess.ties`: the order of a log's rows is information")


def fetch(source: Files, mirror: str | None, directory: Path) -> None:
    """Copy the log's needed columns and the items' fields into `directory`. Paths are relative to the project's root."""
    interactions = read_table(main_checkout() / source.interactions, INTERACTIONS).select(list(INTERACTIONS))
    items = read_table(main_checkout() / source.items, ITEMS)
    write_parquet_pair(interactions, items.select([*ITEMS, *_fields(items.drop(list(ITEMS)))]), directory)


def read(source: Files, directory: Path) -> Raw:
    """Read back what `fetch` wrote."""
    return read_parquet_pair(directory)


def read_table(path: Path, columns: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """Read a Parquet or CSV file, the named columns cast; raise UserError that names file and column."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: not a readable {path.suffix or 'CSV'} file ({str(error).splitlines()[0]})") from None
    for column, kind in columns.items():
        if column not in table.columns:
            raise UserError(f"{path}: column '{column}' is missing{did_you_mean(column, table.columns)}")
        if isinstance(table[column].dtype, pl.Duration):
            raise UserError(f"{path}: column '{column}' is a length of time, not a point in time; write seconds since 1970")
        if isinstance(table[column].dtype, pl.Datetime):
            table = table.with_columns(pl.col(column).dt.epoch("s"))
        try:
            # Casting a fraction would cut it off in silence.
            cut = table[column].dtype.is_float() and kind.is_integer() and bool((table[column] % 1 != 0).any())
            table = table.with_columns(pl.col(column).cast(kind))
        except pl.exceptions.PolarsError:
            cut = True
        if cut:
            raise UserError(f"{path}: column '{column}' cannot be read as {kind.__name__}")
    return table


def _fields(table: pl.DataFrame) -> list[pl.Expr]:
    """Every column as text, lists joined by commas; what is neither (a struct, binary, a duration) is no field."""
    made = []
    for name, kind in table.schema.items():
        if isinstance(kind, pl.List) and _is_text(kind.inner):
            made.append(pl.col(name).cast(pl.List(pl.String)).list.drop_nulls().list.join(", "))
        elif _is_text(kind):
            made.append(pl.col(name).cast(pl.String))
    return made


def _is_text(kind: Any) -> bool:
    """Whether polars can write values of this type as text."""
    return not kind.is_nested() and kind not in (pl.Binary, pl.Duration, pl.Object)
