"""A table in any common format, as a data frame: Parquet, CSV and its relatives, JSON lines; each also as gzip.

Text is read as it is written: no value is taken for a number, a date or a missing one. The format is told by the file's first
bytes and its ending, the separator by the first lines and the ending.
"""

import glob
import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import polars.selectors as cs

from common.errors import UserError, first_line
from common.names import check_file_name
from common.words import plural
from pipeline.data.findings import LISTED
from pipeline.data.json_lines import EXACT, read_json
from pipeline.data.table_file import FileRead, Wanted
from pipeline.data.text_tables import read_text

BAD_SHARE = 0.01  # of rows that may be unreadable; they are dropped and named
ALIKE = 3  # problems of a file that are listed if all are alike
VALUES = re.compile(r"""^.*? row [\d,]+: |'(?:[^'\\]|\\.)*'|"[^"]*"|-?\d[\d.]*""")  # in which problems that are alike differ
JSON_ENDINGS = {".json", ".jsonl", ".ndjson"}
PARQUET_ENDINGS = {".parquet", ".pq"}
PACKED = "packed with {}; unpack it, or pack it with gzip"
UNREAD = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save its sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save its sheet as CSV",
    b"BZh": PACKED.format("bzip2"),
    b"\xfd7zXZ": PACKED.format("xz"),
    b"\x28\xb5\x2f\xfd": PACKED.format("zstd"),
    b"ARROW1": "an Arrow file; write it as Parquet",
    **{bytes([0x80, protocol]): "a pickle of Python; write it as Parquet" for protocol in range(2, 6)},
}  # what the first bytes say of formats that are not read


@dataclass
class TableRead:
    """The rows of one or several files, one after the other."""

    frame: pl.DataFrame
    files: list[FileRead]

    def place(self, index: int) -> str:
        """File and row of a row of `frame`, for messages."""
        for file in self.files:
            if index < file.rows:
                return f"{file.path.name} row {file.number(index):,}"
            index -= file.rows
        raise IndexError(index)

    @property
    def bad(self) -> list[str]:
        return [f"{file.path.name} row {row:,}: {why}" for file in self.files for row, why in sorted(file.bad.items())]


def matching_files(folder: Path, pattern: str) -> list[Path]:
    """The files that a path or glob names, relative to `folder`, sorted.

    Raises UserError if there is none, and for one whose name is not UTF-8.
    """
    path = folder / pattern
    if path.is_file():
        check_file_name(path)
        return [path]
    if path.is_dir():
        raise UserError(f"{path} is a folder; write its files as a glob, such as {pattern.rstrip('/')}/*.parquet")
    names = sorted(glob.glob(pattern, root_dir=folder, recursive=True))  # noqa: PTH207
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"{path}: {'no file matches' if glob.has_magic(pattern) else 'no such file'}")
    for file in found:
        check_file_name(file)
    return found


def read_tables(paths: Sequence[Path], wanted: Wanted) -> TableRead:
    """Read files that are parts of one table. Text columns keep every character; Parquet and JSON keep their types.

    A number that is NaN becomes a missing one, which is what pandas means by it.

    Raises UserError for a file that cannot be read, a missing column, and where more than BAD_SHARE of the rows are unreadable.
    """
    parts, files = [], []
    for path in paths:
        file = FileRead(path)
        parts.append(_read(file, wanted).with_columns(cs.float().fill_nan(None)))
        file.rows = parts[-1].height
        files.append(file)
    try:
        frame = parts[0] if len(parts) == 1 else pl.concat(_alike(parts), how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise UserError(_difference(files, parts, wanted) or f"{paths[0].parent}: {first_line(error)}") from None
    table = TableRead(frame, files)
    refuse_many(table, table.bad, frame.height + len(table.bad))
    return table


def _alike(parts: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """Parts whose columns can be put together: points in time without their zones, which may differ, and text where types do.

    As floats, which polars would take for whole numbers beside others, different long ids would become one. Floats that are
    whole numbers lose their `.0`, since they are whole numbers with gaps, of pandas.
    """
    parts = list(map(_in_utc, parts))
    for name in dict.fromkeys(name for part in parts for name in part.columns):
        kinds = {part.schema[name] for part in parts if name in part.columns} - {pl.Null()}
        if len(kinds) > 1 and all(_is_plain(kind) for kind in kinds) and not all(kind.is_signed_integer() for kind in kinds):
            parts = [part.with_columns(_text(part[name])) if name in part.columns else part for part in parts]
    return parts


def _in_utc(part: pl.DataFrame) -> pl.DataFrame:
    zoned = [name for name, kind in part.schema.items() if isinstance(kind, pl.Datetime) and kind.time_zone]
    return part.with_columns(pl.col(name).dt.convert_time_zone("UTC").dt.replace_time_zone(None) for name in zoned)


def _is_plain(kind: pl.DataType) -> bool:
    return kind.is_integer() or kind.is_float() or kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum)


def _text(column: pl.Series) -> pl.Series:
    whole = column.dtype.is_float() and bool(((column % 1 == 0) & (column.abs() < EXACT)).all())
    return (column.cast(pl.Int64) if whole else column).cast(pl.String)


def _difference(files: list[FileRead], parts: list[pl.DataFrame], wanted: Wanted) -> str:
    """Name the first column whose types in two files cannot be put together, by the file's name for it; "" if none is found."""
    for file, part in zip(files[1:], parts[1:], strict=True):
        for name in (name for name in parts[0].columns if name in part.columns):
            try:
                pl.concat(_alike([parts[0].select(name), part.select(name)]), how="diagonal_relaxed")
            except pl.exceptions.PolarsError:
                theirs, kinds = (wanted.columns | wanted.optional).get(name, name), (part.schema[name], parts[0].schema[name])
                return (
                    f"{file.path}: column '{theirs}' holds {kinds[0]}, but {kinds[1]} in {files[0].path.name}; write both alike"
                )
    return ""


def refuse_many(table: TableRead, problems: list[str], total: int) -> None:
    """Raise UserError that lists the first problems together where they are more than BAD_SHARE of the rows."""
    if len(problems) > BAD_SHARE * total:
        raise UserError(unreadable(table.files[0].path, len(problems), total, problems))


def unreadable(where: Path | str, count: int, total: int, problems: list[str]) -> str:
    """The message that `count` of `total` rows cannot be read. problems: of these rows, at least the first LISTED.

    Fewer are listed where all are the same but for their places and values.
    """
    listed = ALIKE if len({VALUES.sub("", problem) for problem in problems}) == 1 else LISTED
    more = f"; and {count - listed:,} more" if count > listed else ""
    return (
        f"{where}: {plural(count, 'row')} of {total:,} cannot be read (at most {BAD_SHARE:.0%} are skipped); correct or remove "
        f"them: {'; '.join(problems[:listed])}{more}"
    )


def _read(file: FileRead, wanted: Wanted) -> pl.DataFrame:
    path = file.path
    try:
        with path.open("rb") as opened:
            file.packed = opened.read(2) == b"\x1f\x8b"
        with file.open() as opened:
            start = opened.read(8)
        if not start:
            raise UserError(f"{path}: the file is empty; bring it again, or leave it out of the glob")
        if unread := next((what for magic, what in UNREAD.items() if start.startswith(magic)), None):
            raise UserError(f"{path}: {unread}")
        endings = [ending.lower() for ending in path.suffixes]
        ending = endings[-2] if len(endings) > 1 and endings[-1] == ".gz" else (endings or [""])[-1]
        if start[:4] == b"PAR1" or ending in PARQUET_ENDINGS:
            file.how, frame = "Parquet", _read_parquet(file, wanted)
        elif ending in JSON_ENDINGS or start[:1] == b"{":
            file.how, frame = "JSON lines", read_json(file, wanted)
        else:
            frame = read_text(file, wanted, ending)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: the gzip file is truncated or damaged ({error}); bring it again") from None
    file.how += ", gzip" if file.packed else ""
    return frame


def _read_parquet(file: FileRead, wanted: Wanted) -> pl.DataFrame:
    try:
        lazy = pl.scan_parquet(gzip.decompress(file.path.read_bytes()) if file.packed else file.path, glob=False)
        return wanted.choose(lazy, file.path).collect()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file.path}: not a readable Parquet file ({first_line(error)})") from None
