"""A table of text: CSV, TSV and their relatives, read by pyarrow, which counts the rows with too many or too few fields."""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv

from common.errors import UserError
from pipeline.data.findings import LISTED
from pipeline.data.table_file import Columns, FileRead, Wanted, first_line

BLOCK = 1 << 20  # bytes that are read at a time
SEPARATORS = ("::", "\t", ";", ",", "|")
SEPARATOR_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", "::": "'::'"}
UNIT_SEPARATOR = "\x1f"  # stands for '::', since a reader wants a single character
RECBOLE_TYPE = re.compile(r":(token|float)(_seq)?$")


def read_text(file: FileRead, wanted: Wanted, ending: str) -> pl.DataFrame:
    """Every column as text. ending: of the file's name, without that of gzip."""
    try:
        return _read_separated(file, wanted, ending, _encoding(file))
    except UnicodeError as error:
        raise UserError(f"{file.path}: its text is not the UTF-16 that its first bytes announce ({error})") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{file.path}: not a readable text table ({first_line(error)})") from None


def _encoding(file: FileRead) -> str:
    """utf-16 by its mark; utf-8 if all of the text is; latin-1 if most lines with other letters than A to Z are not UTF-8 either.

    Raises UserError where only a few lines are not UTF-8: as Latin-1, the letters of all others would be wrong.
    """
    with file.open() as opened:
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
        raise UserError(
            f"{file.path}: its text is UTF-8, except for {lines}{', …' * (len(wrong) > LISTED)}; correct or remove them"
        )
    return "latin-1"


def _read_separated(file: FileRead, wanted: Wanted, ending: str, encoding: str) -> pl.DataFrame:
    with file.open() as opened:
        first = next(_lines(opened, encoding), "")
    placed = any(isinstance(theirs, int) for theirs in wanted.columns.values())
    recbole = bool(first) and all(RECBOLE_TYPE.search(name) for name in first.split("\t"))
    separator = "\t" if recbole or ending == ".tsv" else _separator(first)
    quote = False if recbole or separator == "::" else '"'
    header = next(csv.reader([first.replace("::", UNIT_SEPARATOR)], delimiter=_one(separator), quoting=_quoting(quote)), [])
    if placed:
        names = [str(place) for place in range(1, len(header) + 1)]
        wanted = Wanted(_as_names(wanted.columns), _as_names(wanted.optional))
    else:
        names = [RECBOLE_TYPE.sub("", name) if recbole else name for name in header]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file.path}: two columns are called {twice[0]!r}; rename one of them")
    chosen = names if wanted.others else list(wanted.resolve(file.path, names).values())
    file.first_row = 1 if placed else 2
    notes = ["RecBole" if recbole else f"text separated by {SEPARATOR_NAMES[separator]}"]
    notes += ["without a header"] if placed else []
    notes += [encoding.capitalize()] if encoding != "utf-8" else []
    file.how = ", ".join(notes)
    bad: list[tuple[int | None, str]] = []

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        bad.append((row.number, f"{row.actual_columns} fields, not {row.expected_columns}"))
        return "skip"

    def read(threads: bool) -> pa.Table:
        bad.clear()
        with file.open() as opened:
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
        _refuse_open_quote(file, encoding, _one(separator))
    return wanted.choose(frame.lazy(), file.path, frame.columns).collect()


def _as_names(columns: Columns) -> Columns:
    return {ours: str(place) for ours, place in columns.items()}


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


def _refuse_open_quote(file: FileRead, encoding: str, separator: str) -> None:
    """Raise UserError that names the line where a quote opens that is never closed."""
    with file.open() as opened:
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
