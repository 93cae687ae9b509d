"""A table of text: CSV, TSV and their relatives, read by pyarrow, which counts the rows with too many or too few fields."""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv

from common.errors import UserError, first_line
from pipeline.data.findings import LISTED
from pipeline.data.table_file import Columns, FileRead, LongTexts, Wanted, nth

BLOCK, LARGEST_BLOCK = 1 << 20, 1 << 30  # bytes that are read at a time
LOOKED_AT = 10  # lines that tell the separator
SEPARATORS = ("::", "\t", ";", ",", "|")
SEPARATOR_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", "::": "'::'"}
END = "\0end"  # a line below the last one, which a quote that is still open takes in
UNIT_SEPARATOR = "\x1f"  # stands for '::', since a reader wants a single character
EXCEL_SEPARATOR = re.compile(r"sep=.")  # a line above the header, which tells Excel the separator
WINDOWS_ONLY = re.compile(rb"[\x80-\x9f]")  # letters and marks in Windows-1252, control characters in Latin-1
UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # no character of Windows-1252
BY_CHANCE = 0.01  # of the lines that are not UTF-8: so many others may read like UTF-8
ESCAPED_QUOTE = re.compile(r'((?<!\\)(?:\\\\)*)\\"')  # after an even number of backslashes, which are themselves escaped
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
    """UTF-16 by its mark; UTF-8 if all of the text is; else Latin-1, or Windows-1252 if it has characters that Latin-1 lacks.

    Raises UserError if some lines are UTF-8 and others are not, for the letters of the former would be wrong as Latin-1. Up to
    BY_CHANCE of the lines may be both. Raises it also for a byte that is no character of Windows-1252.
    """
    with file.open() as opened:
        if opened.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "UTF-16"
        opened.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        with suppress(UnicodeDecodeError):
            while block := opened.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
            return "UTF-8"
        opened.seek(0)
        counts = {True: 0, False: 0}  # of lines beyond ASCII: whether they are UTF-8
        first: dict[bool, list[int]] = {True: [], False: []}  # their numbers
        windows, neither = False, 0
        for number, line in enumerate(opened, start=1):
            if not line.isascii():
                windows = windows or bool(WINDOWS_ONLY.search(line))
                neither = neither or (number if UNDEFINED.search(line) else 0)
                right = _is_utf8(line)
                counts[right] += 1
                if counts[right] <= LISTED:
                    first[right].append(number)
    rarer = counts[True] <= counts[False]
    if counts[rarer] > BY_CHANCE * counts[not rarer] or not rarer:
        lines = f"line{'s' * (counts[rarer] > 1)} {', '.join(f'{number:,}' for number in first[rarer])}"
        lines += ", …" * (counts[rarer] > LISTED)
        if rarer:
            raise UserError(f"{file.path}: its text is not UTF-8, except for {lines}; save all of it as UTF-8")
        raise UserError(f"{file.path}: its text is UTF-8, except for {lines}; correct or remove them")
    if neither:
        raise UserError(f"{file.path}: its text is neither UTF-8 nor Windows-1252 (line {neither:,}); save it as UTF-8")
    return "Windows-1252" if windows else "Latin-1"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class Layout:
    """How a text table is laid out: what separates fields, what quotes them ("" for nothing), and the names of the columns."""

    encoding: str
    separator: str
    quote: str
    names: list[str]
    how: str  # the same in words

    @property
    def delimiter(self) -> str:
        """The separator as a reader takes it, a single character."""
        return _one(self.separator)


def _read_separated(file: FileRead, wanted: Wanted, ending: str, encoding: str) -> pl.DataFrame:
    lines = _first_lines(file, encoding)
    placed = any(isinstance(theirs, int) for theirs in wanted.columns.values())
    layout = _layout(file, lines, placed, ending, encoding)
    if placed:
        wanted = Wanted(_as_names(wanted.columns), _as_names(wanted.optional))
    chosen = layout.names if wanted.others else list(dict.fromkeys(wanted.resolve(file.path, layout.names).values()))
    file.first_row = lines[0][0] + (not placed)
    file.blank = lambda: _blank_rows(file, layout)
    file.how = layout.how
    if layout.quote and _escapes_quotes(file, layout):
        with file.open() as opened:
            text = opened.read().decode(encoding)
        file.content = ESCAPED_QUOTE.sub(r'\1""', text).encode(encoding)
        file.how += r", quotes written as \""
    if not placed and len(lines) == 1:
        return wanted.choose(pl.LazyFrame(schema=dict.fromkeys(layout.names, pl.String)), file.path).collect()
    frame = pl.DataFrame(pl.from_arrow(_table(file, layout, chosen)))
    if layout.quote and _rows_span_lines(file, layout, frame.height + len(file.bad)):
        _note_long_texts(file, layout)
    return wanted.choose(frame.lazy(), file.path).collect()


def _first_lines(file: FileRead, encoding: str) -> list[tuple[int, str]]:
    """The first lines that hold something, with their numbers; Excel's line about the separator is none of them."""
    with file.open() as opened:
        lines = list(islice(_lines(opened, encoding), LOOKED_AT))
    if lines and EXCEL_SEPARATOR.fullmatch(lines[0][1]):
        del lines[0]
    if not lines:
        raise UserError(f"{file.path}: the file is empty")
    if "\0" in lines[0][1]:
        raise UserError(f"{file.path}: no text, or UTF-16 or UTF-32 without its mark; save it as UTF-8")
    return lines


def _layout(file: FileRead, lines: list[tuple[int, str]], placed: bool, ending: str, encoding: str) -> Layout:
    """Tell the layout from the first lines. placed: columns are named by their place, for the file has no header."""
    first = lines[0][1]
    recbole = all(RECBOLE_TYPE.search(name) for name in first.split("\t"))
    separator = "\t" if recbole or ending == ".tsv" else _separator([text for _, text in lines])
    quote = "" if recbole or separator == "::" else '"'
    header = next(csv.reader([first.replace("::", UNIT_SEPARATOR)], delimiter=_one(separator), quoting=_quoting(quote)), [])
    if placed:
        names = [str(place) for place in range(1, len(header) + 1)]
    else:
        names = [RECBOLE_TYPE.sub("", name) if recbole else name for name in header]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file.path}: two columns are called {twice[0]!r}; rename one of them")
    how = ["RecBole" if recbole else f"text separated by {SEPARATOR_NAMES[separator]}"]
    how += ["without a header"] if placed else []
    how += [encoding] if encoding != "UTF-8" else []
    return Layout(encoding, separator, quote, names, ", ".join(how))


def _table(file: FileRead, layout: Layout, chosen: list[str]) -> pa.Table:
    """Read the chosen columns as text, and note rows with too many or too few fields in `file.bad`."""
    bad: list[tuple[int | None, str]] = []

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        bad.append((row.number, f"{row.actual_columns} fields, not {row.expected_columns}"))
        return "skip"

    def read(threads: bool, block: int) -> pa.Table:
        bad.clear()
        with file.open() as opened:
            source: Any = opened
            if layout.separator == "::":
                source = io.BytesIO(opened.read().replace(b"::", UNIT_SEPARATOR.encode()))
            return pyarrow.csv.read_csv(
                source,
                read_options=pyarrow.csv.ReadOptions(
                    use_threads=threads,
                    block_size=block,
                    encoding=layout.encoding,
                    column_names=layout.names,
                    skip_rows=file.first_row - 1,
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=layout.delimiter,
                    quote_char=layout.quote or False,
                    newlines_in_values=bool(layout.quote),
                    invalid_row_handler=refuse,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(layout.names, pa.string()),
                    include_columns=chosen,
                    strings_can_be_null=False,
                    null_values=[],
                ),
            )

    block = BLOCK
    while True:
        try:
            table = read(threads=True, block=block)
            break
        except pa.ArrowInvalid as error:  # a field is larger than a block, as is one that a forgotten quote opens
            if "straddling" not in str(error) or block == LARGEST_BLOCK:
                raise
            if layout.quote:
                _note_long_texts(file, layout)
            block *= 32
    if bad:
        table = read(threads=False, block=block)  # only then are rows numbered
        blank = file.blank()
        file.bad = {nth(int(number or 0), blank): why for number, why in bad}
    return table


def _as_names(columns: Columns) -> Columns:
    return {ours: str(place) for ours, place in columns.items()}


def _lines(opened: Any, encoding: str) -> Iterator[tuple[int, str]]:
    """Lines that hold something, without the mark of UTF-8, and their numbers from 1."""
    for number, line in enumerate(io.TextIOWrapper(opened, encoding=_codec(encoding)), start=1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _codec(encoding: str) -> str:
    return "utf-8-sig" if encoding == "UTF-8" else encoding


def _separator(lines: list[str]) -> str:
    """'::' if it is in all of the lines; else the candidate that occurs most often in the first, outside quotes."""
    if all("::" in line for line in lines):
        return "::"
    bare = re.sub(r'"[^"]*"', "", lines[0])
    return max(SEPARATORS, key=bare.count) if any(mark in bare for mark in SEPARATORS) else ","


def _one(separator: str) -> str:
    return UNIT_SEPARATOR if separator == "::" else separator


def _quoting(quote: str) -> Any:
    return csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE


def _blank_rows(file: FileRead, layout: Layout) -> list[int]:
    """The numbers of the blank rows below the header, as a spreadsheet counts: a text of several lines is within one row."""
    csv.field_size_limit(2**31 - 1)
    with file.open() as opened:
        text = io.TextIOWrapper(opened, encoding=layout.encoding, newline="")
        rows = csv.reader(text, delimiter=layout.delimiter, quoting=_quoting(layout.quote))
        return [number for number, row in enumerate(rows, start=1) if not row and number >= file.first_row]


def _escapes_quotes(file: FileRead, layout: Layout) -> bool:
    r"""Whether quotes in texts are written as \", as Spark does, rather than doubled.

    It is told by lines with \" that are a whole row in one reading alone: `"7\" disc"` has an escaped quote, `"C:\dir\"` has not.
    Raises UserError if lines of both kinds are in the file.
    """
    found: dict[bool, int] = {}
    with file.open() as opened:
        if not any(b"\\" in block for block in iter(lambda: opened.read(BLOCK), b"")):
            return False
        opened.seek(0)
        for number, line in _lines(opened, layout.encoding):
            if '\\"' in line:
                fits = [_is_row(text, layout) for text in (line, ESCAPED_QUOTE.sub(r'\1""', line))]
                if fits[0] != fits[1]:
                    found.setdefault(fits[1], number)
    if len(found) == 2:
        raise UserError(
            f'{file.path}: a quote in a text is written as \\" in line {found[True]:,}, but a backslash ends a text in line '
            f'{found[False]:,}; write every quote in a text as ""'
        )
    return True in found


def _is_row(line: str, layout: Layout) -> bool:
    with suppress(csv.Error):
        return len(next(csv.reader([line], delimiter=layout.delimiter, strict=True))) == len(layout.names)
    return False


def _rows_span_lines(file: FileRead, layout: Layout, rows: int) -> bool:
    """Whether there are more lines than `rows`, or the last line leaves a quote open.

    Lines are counted, rather than line breaks looked for in the values, because the quote may open in a column that is not read.
    """
    with file.open() as opened:
        if not any(b'"' in block for block in iter(lambda: opened.read(BLOCK), b"")):
            return False
        opened.seek(0)
        below, last = 0, ""
        for line in islice(io.TextIOWrapper(opened, encoding=layout.encoding), file.first_row - 1, None):
            if line != "\n":
                below, last = below + 1, line
    return below != rows or len(list(csv.reader([last, END], delimiter=layout.delimiter))) < 2


def _note_long_texts(file: FileRead, layout: Layout) -> None:
    """Note the texts of several lines in `file.long`. Raises UserError that names the line where a quote opens that stays open.

    A quote that opens by mistake may be closed by the next one, and the rows between are then lines of one text. The inner lines
    of a text that have as many fields as a row are counted as such.
    """
    csv.field_size_limit(2**31 - 1)
    rows = longest = where = swallowed = 0
    with file.open() as opened:
        reader = csv.reader(
            chain(io.TextIOWrapper(opened, encoding=_codec(layout.encoding), newline=""), [END]), delimiter=layout.delimiter
        )
        row, line, following = [END], 1, 1
        for row in reader:
            line, following = following, reader.line_num + 1
            if (lines := following - line) > 1:
                rows += 1
                inner = (one for value in row for one in value.splitlines()[1:-1])
                swallowed += sum(one.count(layout.delimiter) == len(layout.names) - 1 > 0 for one in inner)
                if lines > longest:
                    longest, where = lines, line
    if row != [END]:
        line += sum(max(value.count("\n"), value.count("\r")) for value in row[:-1])
        raise UserError(
            f'{file.path}: line {line:,}: a quote opens and is never closed; close it, or write "" for a quote in a text'
        )
    file.long = LongTexts(rows, longest, where, swallowed) if rows else None
