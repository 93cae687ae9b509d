"""Tables in every format and its variants: the same rows come out of all of them."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
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
    table = read_tables([tmp_path / name], COLUMNS, {})
    assert table.frame.to_dicts() == ROWS
    assert not table.bad
    assert ("gzip" in table.files[0].how) == ("packed" in name or name.endswith(".gz"))


def test_text_is_read_as_python_reads_it(tmp_path: Path) -> None:
    """Random fields with separators, quotes, newlines and spaces, against Python's csv."""
    rng = random.Random(0)
    rows = [["".join(rng.choices('ab,;"\n é\t', k=rng.randint(1, 8))) for _ in range(3)] for _ in range(300)]
    for mark in (",", ";", "\t"):
        text = io.StringIO()
        csv.writer(text, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([list(COLUMNS), *rows])
        (tmp_path / "a.csv").write_text(text.getvalue(), encoding="utf-8")
        assert [list(row) for row in read_tables([tmp_path / "a.csv"], COLUMNS, {}).frame.rows()] == rows


def test_utf8_with_a_few_broken_lines_is_not_taken_for_latin1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As Latin-1, the letters of all other lines would be wrong. The second file ends in the middle of a letter."""
    lines = [f"{row},é,1".encode() for row in range(300)]
    for last, wrong in (([b"300,\xe9,1", b"301,\xc3,1"], "lines 302, 303"), (["300,é".encode()[:-1]], "line 302")):
        path = tmp_path / "a.csv"
        path.write_bytes(b"\n".join([b"id,name,at", *lines, *last]))
        with pytest.raises(UserError) as caught:
            read_tables([path], COLUMNS, {})
        assert str(caught.value) == f"{path}: its text is UTF-8, except for {wrong}; correct or remove them"
    assert "Traceback" not in capfd.readouterr().err


def test_a_line_of_json_that_is_not_utf8_is_named_and_dropped(tmp_path: Path) -> None:
    """With its letters replaced, different ids would become one."""
    lines = [json.dumps({"id": str(row), "name": "é", "at": 1}, ensure_ascii=False).encode() for row in range(300)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"id": "\xe9", "name": "a", "at": 1}']))
    table = read_tables([tmp_path / "a.jsonl"], COLUMNS, {})
    assert table.frame["id"].to_list() == [str(row) for row in range(300)]
    assert table.bad == ["a.jsonl row 301: not UTF-8"]


def test_colons_without_header_by_place(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_bytes('1::Café, the: a "film"::Drama|War\n2::Other::Comedy\n'.encode("latin-1"))
    table = read_tables([tmp_path / "movies.dat"], {"id": 1, "name": 2}, {"genres": 3})
    assert table.frame.rows() == [("1", 'Café, the: a "film"', "Drama|War"), ("2", "Other", "Comedy")]
    assert table.files[0].how == "text separated by '::', without a header, Latin-1"
    assert table.place(1) == "movies.dat row 2"


def test_recbole_names_lose_their_types(tmp_path: Path) -> None:
    (tmp_path / "x.item").write_text('item_id:token\ttitle:token_seq\tprice:float\n1\tAn "odd title\t2.5\n')
    table = read_tables([tmp_path / "x.item"], {"item_id": "item_id"}, {}, others=True)
    assert table.frame.to_dicts() == [{"item_id": "1", "title": 'An "odd title', "price": "2.5"}]


def test_a_quote_inside_a_field_is_a_quote(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,name\n1,12" vinyl\n2,7" single\n')
    assert read_tables([tmp_path / "a.csv"], {"id": "id", "name": "name"}, {}).frame["name"].to_list() == [
        '12" vinyl',
        '7" single',
    ]


def test_a_quote_that_is_never_closed_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,name\n1,"two\nlines"\n2,"open\n3,x\n4,y\n')
    with pytest.raises(UserError, match="line 4: a quote opens and is never closed"):
        read_tables([tmp_path / "a.csv"], {"id": "id", "name": "name"}, {})
    (tmp_path / "a.csv").write_text('id,name\n1,"two\nlines"\n')
    assert read_tables([tmp_path / "a.csv"], {"id": "id", "name": "name"}, {}).frame.height == 1


def test_unreadable_rows_are_numbered_as_a_spreadsheet_numbers_them(tmp_path: Path) -> None:
    lines = ["id,name", *(f"{i},n{i}" for i in range(300))]
    lines[10], lines[20] = "9", "19,a,b"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    table = read_tables([tmp_path / "a.csv"], {"id": "id", "name": "name"}, {})
    assert table.bad == ["a.csv row 11: 1 fields, not 2", "a.csv row 21: 3 fields, not 2"]
    for index in (0, 8, 9, 17, 18, 297):
        number = int(table.place(index).rpartition(" ")[2])
        assert lines[number - 1] == ",".join(table.frame.row(index))


def test_many_unreadable_lines_are_refused_ten_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(['{"id": 1}', *["{"] * 12]))
    with pytest.raises(UserError) as caught:
        read_tables([tmp_path / "a.jsonl"], {"id": "id"}, {})
    text = str(caught.value)
    assert text.count("no JSON object") == 10
    assert "a.jsonl row 2: no JSON object; a.jsonl row 3" in text
    assert text.endswith("; and 2 more")


def test_json_values_of_mixed_types_and_lists(tmp_path: Path) -> None:
    lines = [
        {"id": "007", "t": ["a", "b"], "d": {"x": 1}},
        {"id": 7, "t": [], "d": None},
        {"id": 8, "t": ["c"], "d": {"x": "y"}},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    frame = read_tables([tmp_path / "a.jsonl"], {"id": "id"}, {"t": "t"}).frame
    assert frame["id"].cast(pl.String).to_list() == ["007", "7", "8"]


def test_a_glob_is_one_table_and_rows_are_named_by_their_file(tmp_path: Path) -> None:
    for day in (2, 1):
        (tmp_path / f"day{day}.csv").write_text(f"id,name\n{day},x\n{day},y\n")
    table = read_tables(matching_files(tmp_path, "day*.csv"), {"id": "id"}, {})
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
        read_tables(matching_files(tmp_path, name), {"id": "id"}, {})
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
