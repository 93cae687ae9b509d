"""A table in any common format, as a data frame: Parquet, CSV and its relatives, JSON lines; each also as gzip.

Text is read as it is written: no value is taken for a number, a date or a missing one. The format is told by the file's first
bytes and its ending, the separator by the first line.
"""

import ast
import codecs
import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv

from common.errors import UserError, did_you_mean
from pipeline.data.findings import LISTED, plural

BAD_SHARE = 0.01  # of rows that may be unreadable; they are dropped and named
BLOCK = 1 << 20  # bytes that are read at a time
SEPARATORS = ("::", "\t", ";", ",", "|")
SEPARATOR_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", "::": "'::'"}
UNIT_SEPARATOR = "\x1f"  # stands for '::', since a reader wants a single character
RECBOLE_TYPE = re.compile(r":(token|float)(_seq)?$")
JSON_ENDINGS = {".json", ".jsonl", ".ndjson"}
PARQUET_ENDINGS = {".parquet", ".pq"}

Columns = dict[str, str | int]  # our name -> the file's name, or its place in a file without a header, from 1


@dataclass
class FileRead:
    """One file of a table: how it was read, and its rows that could not be, by number and reason."""

    path: Path
    how: str
    rows: int = 0
    first_row: int = 1  # the number of the first row: 2 below a header, as a spreadsheet counts
    bad: dict[int, str] = field(default_factory=dict)

    def number(self, index: int) -> int:
        """The number in the file of the row that is `index` (from 0) of those that were read."""
        number = self.first_row + index
        for bad in sorted(self.bad):
            number += bad <= number
        return number


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
    """The files that a path or glob names, relative to `folder`, sorted. Raises UserError where there is none."""
    path = folder / pattern
    if path.is_file():
        return [path]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]  # noqa: PTH207
    if not found:
        raise UserError(f"{path}: {'no file matches' if glob.has_magic(pattern) else 'no such file'}")
    return found


def read_tables(paths: Sequence[Path], columns: Columns, optional: Columns, others: bool = False) -> TableRead:
    """Read files that are parts of one table.

    columns: what must be there, by our names; optional: what is taken along if it is; others: whether all other columns are kept
    too, under their own names. Text columns keep every character; Parquet and JSON keep their types.

    Raises UserError for a file that cannot be read, a missing column, and where more than BAD_SHARE of the rows are unreadable.
    """
    parts, files = [], []
    for path in paths:
        file = FileRead(path, "")
        parts.append(_read(file, columns, optional, others))
        file.rows = parts[-1].height
        files.append(file)
    try:
        frame = parts[0] if len(parts) == 1 else pl.concat(parts, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{paths[0]} and {plural(len(paths) - 1, 'more file')} differ in their types: {_first(error)}") from None
    table = TableRead(frame, files)
    refuse_many(table, table.bad, frame.height + len(table.bad))
    return table


def refuse_many(table: TableRead, problems: list[str], total: int) -> None:
    """Raise UserError that lists the first problems together where they are more than BAD_SHARE of the rows."""
    if len(problems) > BAD_SHARE * total:
        more = f"; and {len(problems) - LISTED:,} more" if len(problems) > LISTED else ""
        raise UserError(
            f"{table.files[0].path}: {plural(len(problems), 'row')} of {total:,} cannot be read (at most {BAD_SHARE:.0%} are "
            f"skipped); correct or remove them: {'; '.join(problems[:LISTED])}{more}"
        )


def _read(file: FileRead, columns: Columns, optional: Columns, others: bool) -> pl.DataFrame:
    path = file.path
    try:
        with path.open("rb") as opened:
            packed = opened.read(2) == b"\x1f\x8b"
        with _opened(path, packed) as opened:
            start = opened.read(4)
        if not start:
            raise UserError(f"{path}: the file is empty")
        endings = [ending.lower() for ending in path.suffixes]
        ending = endings[-2] if len(endings) > 1 and endings[-1] == ".gz" else (endings or [""])[-1]
        file.how = ", gzip" if packed else ""
        if start == b"PAR1" or ending in PARQUET_ENDINGS:
            file.how = "Parquet" + file.how
            return _read_parquet(file, packed, columns, optional, others)
        if ending in JSON_ENDINGS or start[:1] == b"{":
            file.how = "JSON lines" + file.how
            return _read_json(file, packed, columns, optional, others)
        return _read_text(file, packed, ending, columns, optional, others)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: the gzip file is truncated or damaged ({error}); bring it again") from None


def _opened(path: Path, packed: bool) -> Any:
    return gzip.open(path) if packed else path.open("rb")


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# ------------------------------------------------------------------------------------------------------------- Parquet and JSON


def _read_parquet(file: FileRead, packed: bool, columns: Columns, optional: Columns, others: bool) -> pl.DataFrame:
    try:
        lazy = pl.scan_parquet(gzip.decompress(file.path.read_bytes()) if packed else file.path, glob=False)
        names = lazy.collect_schema().names()
        return _chosen(lazy, file, names, columns, optional, others).collect()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file.path}: not a readable Parquet file ({_first(error)})") from None


def _chosen(
    lazy: pl.LazyFrame, file: FileRead, names: list[str], columns: Columns, optional: Columns, others: bool
) -> pl.LazyFrame:
    """The wanted columns under our names."""
    wanted = resolve(file.path, names, columns, optional)
    rest = [name for name in names if name not in wanted.values() and name not in wanted] if others else []
    return lazy.select(*(pl.col(theirs).alias(ours) for ours, theirs in wanted.items()), *rest)


def resolve(path: Path, names: list[str], columns: Columns, optional: Columns) -> dict[str, str]:
    """Our name -> the file's. Raises UserError for a column that the file lacks."""
    found = {}
    for ours, theirs in (columns | optional).items():
        if isinstance(theirs, int):
            raise UserError(f"{path}: column {ours!r} is given by its place, {theirs}; this file has names: {', '.join(names)}")
        if theirs in names:
            found[ours] = theirs
        elif ours in columns:
            wrong = f"column '{theirs}' is missing" + ("" if theirs == ours else f", which `columns` names for {ours}")
            near = did_you_mean(theirs, names)
            raise UserError(f"{path}: {wrong}{near}" + ("" if theirs != ours or "mean" in near else "; name it in `columns`"))
    return found


def _read_json(file: FileRead, packed: bool, columns: Columns, optional: Columns, others: bool) -> pl.DataFrame:
    with _opened(file.path, packed) as opened:
        content = opened.read()
    if content[:3] == b"\xef\xbb\xbf":
        content = content[3:]
    try:
        lazy = pl.scan_ndjson(io.BytesIO(content), infer_schema_length=None)
        names = lazy.collect_schema().names()
        if not names:
            raise UserError(f"{file.path}: no line holds a JSON object")
        return _chosen(lazy, file, names, columns, optional, others).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return _read_lines(file, content, columns, optional, others)


def _read_lines(file: FileRead, content: bytes, columns: Columns, optional: Columns, others: bool) -> pl.DataFrame:
    """Line by line, JSON objects or, as in older public data sets, Python literals; every value as text. Bad lines are noted."""
    wanted = None if others else {*columns.values(), *optional.values()}
    records: list[dict[str, str | None]] = []
    names: dict[str, None] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = _record(line)
            names |= dict.fromkeys(map(str, record))
            records.append({str(name): _as_text(value) for name, value in record.items() if not wanted or name in wanted})
        except UnicodeDecodeError:
            file.bad[number] = "not UTF-8"
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, AttributeError):
            file.bad[number] = "no JSON object"
    if not records:
        raise UserError(f"{file.path}: no line holds a JSON object")
    found = resolve(file.path, list(names), columns, optional)
    kept = names if others else dict.fromkeys(found.values())
    frame = pl.DataFrame(records, schema=dict.fromkeys(kept, pl.String))
    return _chosen(frame.lazy(), file, frame.columns, columns, optional, others).collect()


def _record(line: bytes) -> dict[str, Any]:
    text = line.decode()
    try:
        record = json.loads(text)
    except ValueError:
        record = ast.literal_eval(text.strip())
    if not isinstance(record, dict):
        raise ValueError("no object")
    return record


def _as_text(value: Any) -> str | None:
    """A scalar as it is written, a list of scalars joined by commas; None for what is neither."""
    if isinstance(value, list):
        texts = [text for one in value if not isinstance(one, list | dict) and (text := _as_text(one)) is not None]
        return ", ".join(texts) if texts else None
    if value is None or isinstance(value, dict):
        return None
    text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool) else str(value)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ------------------------------------------------------------------------------------------------------- text with separators


def _read_text(file: FileRead, packed: bool, ending: str, columns: Columns, optional: Columns, others: bool) -> pl.DataFrame:
    """CSV, TSV and their relatives by pyarrow, whose reader counts the rows with too many or too few fields."""
    try:
        return _read_separated(file, packed, ending, _encoding(file.path, packed), columns, optional, others)
    except UnicodeError as error:
        raise UserError(f"{file.path}: its text is not the UTF-16 that its first bytes announce ({error})") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{file.path}: not a readable text table ({_first(error)})") from None


def _encoding(path: Path, packed: bool) -> str:
    """utf-16 by its mark; utf-8 if all of the text is; latin-1 if most lines with other letters than A to Z are not UTF-8 either.

    Raises UserError where only a few lines are not UTF-8: as Latin-1, the letters of all others would be wrong.
    """
    with _opened(path, packed) as opened:
        if opened.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        opened.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        with suppress(UnicodeDecodeError):
            while block := opened.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
            return "utf-8"
        opened.seek(0)
        right, wrong = 0, []
        for number, line in enumerate(opened, start=1):
            if not line.isascii():
                try:
                    line.decode()
                    right += 1
                except UnicodeDecodeError:
                    wrong.append(number)
    if right > len(wrong):
        lines = f"line{'s' * (len(wrong) > 1)} {', '.join(f'{number:,}' for number in wrong[:LISTED])}"
        raise UserError(f"{path}: its text is UTF-8, except for {lines}{', …' * (len(wrong) > LISTED)}; correct or remove them")
    return "latin-1"


def _read_separated(
    file: FileRead, packed: bool, ending: str, encoding: str, columns: Columns, optional: Columns, others: bool
) -> pl.DataFrame:
    with _opened(file.path, packed) as opened:
        first = next(_lines(opened, encoding), "")
    placed = {ours: theirs for ours, theirs in (columns | optional).items() if isinstance(theirs, int)}
    recbole = bool(first) and all(RECBOLE_TYPE.search(name) for name in first.split("\t"))
    separator = "\t" if recbole or ending == ".tsv" else _separator(first)
    quote = False if recbole or separator == "::" else '"'
    header = next(csv.reader([first.replace("::", UNIT_SEPARATOR)], delimiter=_one(separator), quoting=_quoting(quote)), [])
    if placed:
        names = [str(place) for place in range(1, len(header) + 1)]
        columns = {ours: str(theirs) for ours, theirs in columns.items()}
        optional = {ours: str(theirs) for ours, theirs in optional.items() if ours in placed}
    else:
        names = [RECBOLE_TYPE.sub("", name) if recbole else name for name in header]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file.path}: two columns are called {twice[0]!r}; rename one of them")
    wanted = resolve(file.path, names, columns, optional)
    chosen = list(names) if others else list(wanted.values())
    file.first_row = 1 if placed else 2
    notes = ["RecBole" if recbole else f"text separated by {SEPARATOR_NAMES[separator]}"]
    notes += ["without a header"] if placed else []
    notes += [encoding.capitalize()] if encoding != "utf-8" else []
    file.how = ", ".join(notes) + (", gzip" if packed else "")
    bad: list[tuple[int | None, str]] = []

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        bad.append((row.number, f"{row.actual_columns} fields, not {row.expected_columns}"))
        return "skip"

    def read(threads: bool) -> pa.Table:
        bad.clear()
        with _opened(file.path, packed) as opened:
            source: Any = opened
            if separator == "::":
                source = io.BytesIO(opened.read().replace(b"::", UNIT_SEPARATOR.encode()))
            return pyarrow.csv.read_csv(
                source,
                read_options=pyarrow.csv.ReadOptions(
                    use_threads=threads, encoding=encoding, column_names=names, skip_rows=0 if placed else 1
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=_one(separator), quote_char=quote, newlines_in_values=bool(quote), invalid_row_handler=refuse
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    include_columns=chosen,
                    strings_can_be_null=False,
                    null_values=[],
                ),
            )

    table = read(threads=True)
    if bad:
        table = read(threads=False)  # only then are rows numbered
        file.bad = {int(number or 0): why for number, why in bad}
    frame = pl.DataFrame(pl.from_arrow(table))
    if quote and frame.height and any("\n" in value for value in frame.row(-1)):
        _refuse_open_quote(file, packed, encoding, _one(separator))
    return _chosen(frame.lazy(), file, frame.columns, columns, optional, others).collect()


def _lines(opened: Any, encoding: str) -> Iterator[str]:
    """Lines that hold something, without the mark of UTF-8."""
    for line in io.TextIOWrapper(opened, encoding="utf-8-sig" if encoding == "utf-8" else encoding):
        if line.strip():
            yield line.rstrip("\r\n")


def _separator(line: str) -> str:
    """What separates the fields of a line: the candidate that occurs most often outside quotes."""
    bare = re.sub(r'"[^"]*"', "", line)
    return max(SEPARATORS, key=bare.count) if any(mark in bare for mark in SEPARATORS) else ","


def _one(separator: str) -> str:
    return UNIT_SEPARATOR if separator == "::" else separator


def _quoting(quote: str | bool) -> Any:
    return csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE


def _refuse_open_quote(file: FileRead, packed: bool, encoding: str, separator: str) -> None:
    """Raise UserError that names the line where a quote opens that is never closed."""
    with _opened(file.path, packed) as opened:
        text = io.TextIOWrapper(opened, encoding=encoding, newline="")
        reader = csv.reader(text, delimiter=separator, strict=True)
        line = 1
        csv.field_size_limit(2**31 - 1)
        while True:
            line = reader.line_num + 1
            try:
                next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" not in str(error):
                    continue
                raise UserError(
                    f'{file.path}: line {line:,}: a quote opens and is never closed; close it, or write "" for a quote in a text'
                ) from None
