"""Tables in every format and its variants: the same rows come out of all of them."""

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import os
import pickle
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


def test_only_the_pattern_is_a_glob_and_not_the_folder_of_the_project(tmp_path: Path) -> None:
    project = tmp_path / "shop [1]"
    project.mkdir()
    for day in (2, 1):
        (project / f"day{day}.csv").touch()
    assert matching_files(project, "day*.csv") == [project / "day1.csv", project / "day2.csv"]
    outside = tmp_path / "logs"
    outside.mkdir()
    (outside / "day3.csv").touch()
    assert matching_files(project, f"{outside}/day*.csv") == [outside / "day3.csv"]


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
        ("_SUCCESS", b"", "the file is empty; bring it again, or leave it out of the glob"),
        ("blank.csv", b"\n \n", "the file is empty"),
        ("log.xlsx", b"PK\x03\x04" + bytes(60), "a zip archive or an Excel workbook; unpack it, or save its sheet as CSV"),
        ("log.xls", b"\xd0\xcf\x11\xe0" + bytes(60), "an Excel workbook; save its sheet as CSV"),
        ("log.csv.bz2", bz2.compress(b"id\n1\n"), "packed with bzip2; unpack it, or pack it with gzip"),
        ("log.csv.xz", lzma.compress(b"id\n1\n"), "packed with xz; unpack it, or pack it with gzip"),
        ("log.csv.zst", b"\x28\xb5\x2f\xfd" + bytes(9), "packed with zstd; unpack it, or pack it with gzip"),
        ("log.arrow", b"ARROW1" + bytes(9), "an Arrow file; write it as Parquet"),
        ("log.pkl", pickle.dumps({"id": 1}), "a pickle of Python; write it as Parquet"),
        ("log.csv", "id\n1\n".encode("utf-16-le"), "no text, or UTF-16 or UTF-32 without its mark; save it as UTF-8"),
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


def test_a_folder_is_refused_with_the_glob_to_write(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for pattern in ("log", "log/"):
        with pytest.raises(UserError, match=r"log is a folder; write its files as a glob, such as log/\*\.parquet$"):
            matching_files(tmp_path, pattern)


def test_the_projects_own_path_is_no_glob(tmp_path: Path) -> None:
    folder = tmp_path / "shop [v1]"
    folder.mkdir()
    (folder / "a.csv").touch()
    assert matching_files(folder, "*.csv") == [folder / "a.csv"]


def test_points_in_time_of_several_zones_are_one_table(tmp_path: Path) -> None:
    """A time without a zone is UTC, in every format."""
    moment = datetime.datetime(2017, 7, 14, 2, 40)
    zones = {"a": None, "b": "UTC", "c": "Europe/Paris"}
    for name, zone in zones.items():
        at = pl.Series([moment]).dt.replace_time_zone("UTC").dt.convert_time_zone(zone or "UTC")
        at = at if zone else at.dt.replace_time_zone(None)
        pl.DataFrame({"id": [name], "at": at}).write_parquet(tmp_path / f"{name}.parquet")
    table = read_tables(matching_files(tmp_path, "*.parquet"), Wanted({"id": "id", "at": "at"}, {}))
    assert table.frame.rows() == [(name, moment) for name in zones]


@pytest.mark.parametrize("name", ["nan.parquet", "nan.jsonl"])
@pytest.mark.parametrize("beside", [None, "text"])
def test_a_number_that_is_nan_is_missing(tmp_path: Path, name: str, beside: str | None) -> None:
    """As pandas writes a column with gaps; also beside another file whose ids are text."""
    nan = float("nan")
    rows = [{"id": 1.5, "at": nan}, {"id": nan, "at": 2.5}, {"id": None, "at": 3.5}]
    if name.endswith("parquet"):
        pl.DataFrame(rows).write_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if beside:
        (tmp_path / "text.csv").write_text("id,at\nnan,4\n")
    table = read_tables(matching_files(tmp_path, "*.*"), Wanted({"id": "id", "at": "at"}, {}))
    assert table.frame.cast(pl.String).rows() == [
        ("1.5", None),
        (None, "2.5"),
        (None, "3.5"),
        *([("nan", "4")] if beside else []),
    ]


def test_a_name_with_a_dot_is_a_field_of_an_object(tmp_path: Path) -> None:
    """In Parquet, in JSON that is read at once, and in JSON whose long ids are read line by line. A column of that name wins."""
    rows = [{"user": {"id": number, "name": {"first": "Ada"}}, "a.b": "x", "a": {"b": "y"}} for number in (7, 8)]
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = [2**62 + 1, 2**62 + 2, 1.5]
    (tmp_path / "c.jsonl").write_text(
        "".join(
            json.dumps(row | {"user": {"id": at, "name": {"first": "Ada"}}}) + "\n"
            for row, at in zip([*rows, rows[0]], long, strict=True)
        )
    )
    wanted = Wanted({"id": "user.id", "name": "user.name.first"}, {"more": "a.b"})
    for name, ids in (("a.parquet", ["7", "8"]), ("b.jsonl", ["7", "8"]), ("c.jsonl", [*map(str, long)])):
        table = read_tables([tmp_path / name], wanted)
        assert table.frame.cast(pl.String).rows() == [(at, "Ada", "x") for at in ids]
        assert not table.bad
    for name in ("a.parquet", "b.jsonl"):
        with pytest.raises(UserError) as caught:
            read_tables([tmp_path / name], Wanted({"id": "user"}, {}))
        says = "column 'user' holds objects; name a field of theirs in `columns`: 'user.id', 'user.name'"
        assert str(caught.value) == f"{tmp_path / name}: {says}"


@pytest.mark.parametrize(
    ("kinds", "ids"),
    [
        ((pl.Categorical, pl.Int64), ("7", "8")),
        ((pl.Int64, pl.Float64), ("7", "8")),
        ((pl.String, pl.Float32), ("7", "8")),
        ((pl.Int64, pl.UInt64), (str(2**62 + 1), str(2**62 + 2))),
        ((pl.Int64, pl.Float64), (str(2**62 + 1), "1.5")),
        ((pl.Enum(["007"]), pl.Categorical), ("007", "x")),
    ],
)
def test_ids_of_several_types_are_one_table(tmp_path: Path, kinds: tuple, ids: tuple[str, str]) -> None:
    """As floats, long ids would become one. Whole numbers of a column with gaps, which pandas writes as floats, are whole."""
    for name, kind, written in zip("ab", kinds, ids, strict=True):
        pl.DataFrame({"id": [written, None]}).cast(kind).write_parquet(tmp_path / f"{name}.parquet")
    table = read_tables(matching_files(tmp_path, "*.parquet"), Wanted({"id": "id"}, {}))
    assert table.frame["id"].to_list() == [ids[0], None, ids[1], None]


def test_columns_that_cannot_be_put_together_are_named_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,at\n1,2\n")
    for name, value in (("b", 1), ("c", [1])):
        pl.DataFrame({"sku": [value], "at": [3]}).write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(UserError) as caught:
        read_tables(matching_files(tmp_path, "*.*"), Wanted({"id": "sku", "at": "at"}, {}))
    says = "column 'sku' holds List(Int64), but String in a.csv; write both alike"
    assert str(caught.value) == f"{tmp_path / 'c.parquet'}: {says}"


def test_a_name_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"Auftr\xe4ge.csv")).write_text("id\n1\n")
    for pattern in ("*.csv", os.fsdecode(b"Auftr\xe4ge.csv")):
        with pytest.raises(UserError, match=r"Auftr\\udce4ge\.csv': the name of this file is not UTF-8; rename it$"):
            matching_files(tmp_path, pattern)
