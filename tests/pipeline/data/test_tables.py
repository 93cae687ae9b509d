"""Tables in every format and its variants: the same rows come out of all of them."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from pipeline.data.table_file import Wanted
from pipeline.data.tables import matching_files, read_tables

ROWS = [
    {"id": "007", "name": "Tea, green", "at": "1"},
    {"id": "NA", "name": "Café\nau lait", "at": "2"},
    {"id": "null", "name": 'The "best"', "at": "3"},
    {"id": "818.0", "name": "", "at": "4"},
    {"id": "1e5", "name": " x ", "at": "5"},
]
COLUMNS = {"id": "id", "name": "name", "at": "at"}


def separated(mark: str, end: str = "\n") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), delimiter=mark, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "plain.csv": lambda: separated(",").encode(),
    "no-ending": lambda: separated(",").encode(),
    "semicolons.csv": lambda: separated(";").encode(),
    "bars.txt": lambda: separated("|").encode(),
    "tabs.tsv": lambda: separated("\t").encode(),
    "TABS.TSV": lambda: separated("\t").encode(),
    "mark.csv": lambda: b"\xef\xbb\xbf" + separated(",").encode(),
    "windows.csv": lambda: separated(",", "\r\n").encode(),
    "latin.csv": lambda: separated(",").encode("latin-1"),
    "utf16.csv": lambda: separated(",").encode("utf-16"),
    "packed.csv.gz": lambda: gzip.compress(separated(",").encode()),
    "packed-without-ending.csv": lambda: gzip.compress(separated(",").encode()),
    "lines.jsonl": lambda: "\n".join(map(json.dumps, ROWS)).encode(),
    "lines.JSON": lambda: "\n".join(map(json.dumps, ROWS)).encode(),
    "lines.jsonl.gz": lambda: gzip.compress("\n".join(map(json.dumps, ROWS)).encode()),
    "literals.json": lambda: "\n".join(map(repr, ROWS)).encode(),
    "table.parquet": lambda: parquet(),
    "table.pq": lambda: parquet(),
    "TABLE.PARQUET": lambda: parquet(),
    "table.parquet.gz": lambda: gzip.compress(parquet()),
}


def parquet() -> bytes:
    file = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(file)
    return file.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMATS[name]())
    table = read_tables([tmp_path / name], Wanted(COLUMNS, {}))
    assert table.frame.to_dicts() == ROWS
    assert not table.bad
    assert ("gzip" in table.files[0].how) == ("packed" in name or name.endswith(".gz"))


def test_a_glob_is_one_table_and_rows_are_named_by_their_file(tmp_path: Path) -> None:
    for day in (2, 1):
        (tmp_path / f"day{day}.csv").write_text(f"id,name\n{day},x\n{day},y\n")
    table = read_tables(matching_files(tmp_path, "day*.csv"), Wanted({"id": "id"}, {}))
    assert table.frame["id"].to_list() == ["1", "1", "2", "2"]
    assert [table.place(row) for row in (0, 3)] == ["day1.csv row 2", "day2.csv row 3"]
    with pytest.raises(UserError, match=r"no file matches"):
        matching_files(tmp_path, "night*.csv")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.csv", None, "no such file"),
        ("empty.csv", b"", "the file is empty"),
        ("empty.csv.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("broken.parquet", b"PAR1 no more", "not a readable Parquet file"),
        ("twice.csv", b"id,id\n1,2\n", "two columns are called 'id'; rename one of them"),
        ("cut.csv.gz", gzip.compress(b"id\n" + bytes(range(48, 58)) * 5000)[:-9], "the gzip file is truncated or damaged"),
        ("header.csv", b"ID\n1\n", "column 'id' is missing"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_tables(matching_files(tmp_path, name), Wanted({"id": "id"}, {}))
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
