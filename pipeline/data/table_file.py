"""Which columns to read from a file of a table, and how it was read: format, row numbers, unreadable rows."""

import gzip
import io
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from common.errors import UserError, did_you_mean, nearest

Columns = dict[str, str | int]  # our name -> the file's name, or its place in a file without a header, from 1


@dataclass(frozen=True)
class Wanted:
    """The columns that are read.

    columns: what must be there, by our names; optional: what is taken along if it is; others: whether all other columns are kept
    too, under their own names; option: the option of the source that names the columns.
    """

    columns: Columns
    optional: Columns
    others: bool = False
    option: str = "columns"

    def resolve(self, path: Path, names: list[str]) -> dict[str, str]:
        """Our name -> the file's. Raises UserError for a column that the file lacks."""
        found = {}
        for ours, theirs in (self.columns | self.optional).items():
            if isinstance(theirs, int):
                raise UserError(
                    f"{path}: column {ours!r} is given by its place, {theirs}; this file has names: {', '.join(names)}"
                )
            if theirs in names:
                found[ours] = theirs
            elif ours in self.columns:
                wrong = f"column '{theirs}' is missing" + ("" if theirs == ours else f", which `{self.option}` names for {ours}")
                advice = f"; name it in `{self.option}`" if theirs == ours and not nearest(theirs, names) else ""
                raise UserError(f"{path}: {wrong}{did_you_mean(theirs, names)}{advice}")
        return found

    def choose(self, lazy: pl.LazyFrame, path: Path) -> pl.LazyFrame:
        """The wanted columns under our names. `user.id` names the field `id` of the objects in column `user`.

        Raises UserError where a needed column holds objects.
        """
        schema = lazy.collect_schema()
        known: dict[str, tuple[pl.Expr, Any]] = {name: (pl.col(name), kind) for name, kind in schema.items()}
        for name, (column, kind) in list(known.items()):
            known = _fields(name, column, kind) | known
        wanted = self.resolve(path, [*schema.names(), *(name for name in known if name not in schema)])
        for ours in self.columns:
            if isinstance(kind := known[wanted[ours]][1], pl.Struct):
                fields = ", ".join(f"'{wanted[ours]}.{field.name}'" for field in kind.fields)
                raise UserError(
                    f"{path}: column '{wanted[ours]}' holds objects; name a field of theirs in `{self.option}`: {fields}"
                )
        rest = [name for name in schema if name not in wanted.values() and name not in wanted] if self.others else []
        return lazy.select(*(known[theirs][0].alias(ours) for ours, theirs in wanted.items()), *rest)


def _fields(name: str, column: pl.Expr, kind: Any) -> dict[str, tuple[pl.Expr, Any]]:
    """The fields of a column of objects, and theirs, with their types, by names such as `user.id`."""
    found: dict[str, tuple[pl.Expr, Any]] = {}
    for inner in kind.fields if isinstance(kind, pl.Struct) else []:
        path, value = f"{name}.{inner.name}", column.struct.field(inner.name)
        found |= {path: (value, inner.dtype), **_fields(path, value, inner.dtype)}
    return found


@dataclass(frozen=True)
class LongTexts:
    """How many rows hold texts of several lines; the lines of the longest such row, and the line where it begins.

    swallowed: lines within texts that look like rows, as they do if a quote that opens by mistake is closed by a later one.
    """

    rows: int
    longest: int
    line: int
    swallowed: int


@dataclass
class FileRead:
    """One file of a table: how it was read, and its rows that could not be, by number and reason.

    first_row: the number of the first row, as a spreadsheet counts, 2 below a header; blank: finds the numbers of blank rows,
    sorted, which are no rows of the table; long: texts of several lines, None where there are none; content: what is read instead
    of the file's bytes, if it had to be changed.
    """

    path: Path
    packed: bool = False  # by gzip
    how: str = ""
    rows: int = 0
    first_row: int = 1
    bad: dict[int, str] = field(default_factory=dict)
    blank: Callable[[], list[int]] = list
    long: LongTexts | None = None
    content: bytes | None = None

    def open(self) -> Any:
        """The file's bytes, unpacked."""
        if self.content is not None:
            return io.BytesIO(self.content)
        return gzip.open(self.path) if self.packed else self.path.open("rb")

    def number(self, index: int) -> int:
        """The number in the file of the row that is `index` (from 0) of those that were read."""
        return nth(self.first_row + index, self._skipped)

    @cached_property
    def _skipped(self) -> list[int]:
        return sorted({*self.bad, *self.blank()})


def nth(number: int, skipped: list[int]) -> int:
    """The number of a row among all rows, where `number` counts all but the `skipped` ones, sorted.

    >>> [nth(number, [2, 3, 6]) for number in (1, 2, 3, 4)]
    [1, 4, 5, 7]
    """
    before = bisect_right(range(len(skipped)), number, key=lambda place: skipped[place] - place)
    return number + before
