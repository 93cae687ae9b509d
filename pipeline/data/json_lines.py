"""A table of JSON lines: an object a line, or, as in older public data sets, a Python literal."""

import ast
import io
import json
from typing import Any

import polars as pl

from common.errors import UserError
from pipeline.data.table_file import FileRead, Wanted

EXACT = 2**53  # up to here, a float holds every whole number


def read_json(file: FileRead, wanted: Wanted) -> pl.DataFrame:
    with file.open() as opened:
        content = opened.read()
    if content[:3] == b"\xef\xbb\xbf":
        content = content[3:]
    if content.lstrip()[:1] == b"[":
        raise UserError(f"{file.path}: a JSON array; write one object a line: `jq -c '.[]' {file.path.name}`")
    file.blank = lambda: [number for number, line in enumerate(content.splitlines(), start=1) if not line.strip()]
    try:
        return _read_objects(file, content, wanted)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return _read_lines(file, content, wanted)


def _read_objects(file: FileRead, content: bytes, wanted: Wanted) -> pl.DataFrame:
    """All lines at once. Numbers that a float may not hold, as long ids beside a fraction, are read again as text."""

    def read(as_text: list[str]) -> pl.DataFrame:
        texts = dict.fromkeys(as_text, pl.String)
        lazy = pl.scan_ndjson(io.BytesIO(content), infer_schema_length=None, schema_overrides=texts)
        return wanted.choose(lazy, file.path).collect()

    frame = read([])
    found = {ours: str(theirs) for ours, theirs in (wanted.columns | wanted.optional).items() if ours in frame.columns}
    inexact = [found[ours] for ours in found if frame[ours].dtype.is_float() and (frame[ours].abs() >= EXACT).any()]
    if any("." in name for name in inexact):  # perhaps a field of an object
        return _read_lines(file, content, wanted)
    return read(inexact) if inexact else frame


def _read_lines(file: FileRead, content: bytes, wanted: Wanted) -> pl.DataFrame:
    """Line by line; every value as text. Bad lines are noted."""
    needed = set(wanted.columns.values())
    chosen = None if wanted.others else {*needed, *wanted.optional.values()}
    dotted = [str(name) for name in (*needed, *wanted.optional.values()) if "." in str(name)]
    records: list[dict[str, str | None]] = []
    names: dict[str, None] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = _record(line)
            record |= {name: value for name in dotted if name not in record and (value := _field(record, name)) is not None}
            names |= dict.fromkeys(map(str, record))
            if nested := [name for name, value in record.items() if name in needed and isinstance(value, dict | list)]:
                file.bad[number] = f"{nested[0]} is an object or a list"
                continue
            records.append({str(name): _as_text(value) for name, value in record.items() if not chosen or name in chosen})
        except UnicodeDecodeError:
            file.bad[number] = "not UTF-8"
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, AttributeError):
            file.bad[number] = "no JSON object"
    if not records:
        why = "".join(f" (row {number}: {why})" for number, why in list(file.bad.items())[:1])
        raise UserError(
            f"{file.path}: no line can be read{why}; write a JSON object a line, in UTF-8, or give a text table the ending .csv"
        )
    found = wanted.resolve(file.path, list(names))
    kept = names if wanted.others else dict.fromkeys(found.values())
    frame = pl.DataFrame(records, schema=dict.fromkeys(kept, pl.String))
    return wanted.choose(frame.lazy(), file.path).collect()


def _record(line: bytes) -> dict[str, Any]:
    text = line.decode()
    try:
        record = json.loads(text)
    except ValueError:
        record = ast.literal_eval(text.strip())
    if not isinstance(record, dict):
        raise ValueError("no object")
    return record


def _field(record: Any, name: str) -> Any:
    """The field of an object within an object that a name such as `user.id` stands for; None if there is none."""
    for part in name.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def _as_text(value: Any) -> str | None:
    """A scalar as it is written, a list of scalars joined by commas; None for what is neither, and for NaN."""
    if isinstance(value, list):
        texts = [text for one in value if not isinstance(one, list | dict) and (text := _as_text(one)) is not None]
        return ", ".join(texts) if texts else None
    if value is None or isinstance(value, dict) or value != value:
        return None
    text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool) else str(value)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
