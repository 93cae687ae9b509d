"""Text tables: encodings, separators, quotes and the numbers of rows."""

import csv
import io
import random
from pathlib import Path

import pytest

from common.errors import UserError
from pipeline.data import text_tables
from pipeline.data.table_file import LongTexts, Wanted
from pipeline.data.tables import read_tables

COLUMNS = {"id": "id", "name": "name", "at": "at"}


def test_text_is_read_as_python_reads_it(tmp_path: Path) -> None:
    """Random fields with separators, quotes, newlines and spaces, against Python's csv."""
    rng = random.Random(0)
    rows = [["".join(rng.choices('ab,;"\n é\t', k=rng.randint(1, 8))) for _ in range(3)] for _ in range(300)]
    for mark in (",", ";", "\t"):
        text = io.StringIO()
        csv.writer(text, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([list(COLUMNS), *rows])
        (tmp_path / "a.csv").write_text(text.getvalue(), encoding="utf-8")
        assert [list(row) for row in read_tables([tmp_path / "a.csv"], Wanted(COLUMNS, {})).frame.rows()] == rows


def test_utf8_with_a_few_broken_lines_is_not_taken_for_latin1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As Latin-1, the letters of all other lines would be wrong. The second file ends in the middle of a letter."""
    lines = [f"{row},é,1".encode() for row in range(300)]
    for last, wrong in (([b"300,\xe9,1", b"301,\xc3,1"], "lines 302, 303"), (["300,é".encode()[:-1]], "line 302")):
        path = tmp_path / "a.csv"
        path.write_bytes(b"\n".join([b"id,name,at", *lines, *last]))
        with pytest.raises(UserError) as caught:
            read_tables([path], Wanted(COLUMNS, {}))
        assert str(caught.value) == f"{path}: its text is UTF-8, except for {wrong}; correct or remove them"
    assert "Traceback" not in capfd.readouterr().err


def test_text_that_is_utf8_in_some_lines_and_not_in_others_is_refused(tmp_path: Path) -> None:
    """One in a hundred may be so by chance: in Latin-1, `Ã¼` is two letters."""
    path = tmp_path / "items.csv"
    for old, new, places in ((4, 3, "lines 6, 7, 8"), (1, 1, "line 3")):
        lines = [b"id,name,at", *["1,Käse,1".encode("latin-1")] * old, *["2,Müsli,2".encode()] * new]
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(UserError) as caught:
            read_tables([path], Wanted(COLUMNS, {}))
        assert str(caught.value) == f"{path}: its text is not UTF-8, except for {places}; save all of it as UTF-8"
    path.write_bytes(b"\n".join([b"id,name,at", *["1,Käse,1".encode("latin-1")] * 100, "2,Müsli,2".encode()]))
    assert read_tables([path], Wanted(COLUMNS, {})).frame["name"].to_list()[-1] == "MÃ¼sli"


def test_colons_without_header_by_place(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_bytes('1::Café, the: a "film"::Drama|War\n2::Other::Comedy\n'.encode("latin-1"))
    table = read_tables([tmp_path / "movies.dat"], Wanted({"id": 1, "name": 2}, {"genres": 3}))
    assert table.frame.rows() == [("1", 'Café, the: a "film"', "Drama|War"), ("2", "Other", "Comedy")]
    assert table.files[0].how == "text separated by '::', without a header, Latin-1"
    assert table.place(1) == "movies.dat row 2"


def test_recbole_names_lose_their_types(tmp_path: Path) -> None:
    (tmp_path / "x.item").write_text('item_id:token\ttitle:token_seq\tprice:float\n1\tAn "odd title\t2.5\n')
    table = read_tables([tmp_path / "x.item"], Wanted({"item_id": "item_id"}, {}, others=True))
    assert table.frame.to_dicts() == [{"item_id": "1", "title": 'An "odd title', "price": "2.5"}]


def test_a_quote_inside_a_field_is_a_quote(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,name\n1,12" vinyl\n2,7" single\n')
    assert read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {})).frame["name"].to_list() == [
        '12" vinyl',
        '7" single',
    ]


def test_a_quote_that_is_never_closed_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,name\n1,"two\nlines"\n2,"open\n3,x\n4,y\n')
    with pytest.raises(UserError, match="line 4: a quote opens and is never closed"):
        read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {}))
    (tmp_path / "a.csv").write_text('id,name\n1,"two\nlines"\n')
    assert read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {})).frame.height == 1


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(
    ("line", "last"),
    [('u,7,"55 inch', "u,8,tea"), ('u,"7,55 inch', "u,8,tea"), ('u,7,"55 inch', "u,8,tea\n"), ("u,7,x", 'u,8,"tea')],
)
def test_a_quote_that_stays_open_in_a_column_that_is_not_read_is_refused(
    tmp_path: Path, header: bool, line: str, last: str
) -> None:
    """The rows below it would be gone without a word."""
    rows = ['u,1,"one\n\ntwo"', *(f"u,{i},tea" for i in range(200)), line, *(f"u,{i},tea" for i in range(99)), last]
    (tmp_path / "a.csv").write_text("\n".join(["id,at,query"] * header + rows))
    number = header + (304 if '"' in last else 204)
    with pytest.raises(UserError, match=f"a.csv: line {number}: a quote opens and is never closed"):
        read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "at": "at"} if header else {"id": 1, "at": 2}, {}))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_between_a_stray_quote_and_the_next_are_counted(tmp_path: Path, end: str) -> None:
    """Of 300 rows, the quote of row 101 is closed in row 200: 98 rows between them are in one text."""
    lines = [f"u{i},{i},tea" for i in range(300)]
    lines[100], lines[199] = 'u,7,"55 inch', 'u,8,32"'
    (tmp_path / "a.csv").write_text(end.join(["id,at,query", *lines]), newline="")
    table = read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "at": "at"}, {}))
    assert table.frame.height == 201
    assert table.files[0].long == LongTexts(rows=1, longest=100, line=102, swallowed=98)


def test_texts_of_several_lines_are_counted_and_single_lines_are_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text('id,name\n\n1,"one\ntwo, and\nthree"\n2,"a\n\nb\nc"\n3,"d, e"\n')
    table = read_tables([tmp_path / "a.csv"], Wanted({"id": "id"}, {}))
    assert table.frame["id"].to_list() == ["1", "2", "3"]
    assert table.files[0].long == LongTexts(rows=2, longest=4, line=6, swallowed=1)
    monkeypatch.setattr(text_tables, "_note_long_texts", None)
    for encoding in ("utf-8", "utf-16", "latin-1"):
        (tmp_path / "a.csv").write_text('id,name\n\n1,"one, é"\r\n2,7" disc\n\n', encoding=encoding)
        assert read_tables([tmp_path / "a.csv"], Wanted({"id": "id"}, {})).files[0].long is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "windows-1252"])
def test_quotes_escaped_by_backslashes_are_quotes(tmp_path: Path, encoding: str) -> None:
    r"""As Spark writes them, and a backslash at the end of a text as \\\\. Other backslashes stay."""
    rows = [
        (r'"Tisch 30\" x 40\", Größe"', 'Tisch 30" x 40", Größe'),
        (r'"27\""', '27"'),
        (r'"C:\temp, \"x\""', r'C:\temp, "x"'),
        (r'"end, \\"', r"end, \\"),
        (r"D:\new", r"D:\new"),
        ('"two ""and"" more"', 'two "and" more'),
        ('"two\nlines \\"here\\""', 'two\nlines "here"'),
    ]
    text = "".join(f"{number},{written}\n" for number, (written, _) in enumerate(rows))
    (tmp_path / "a.csv").write_bytes(f"id,name\n{text}".encode(encoding))
    table = read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {}))
    assert table.frame["name"].to_list() == [name for _, name in rows]
    assert table.files[0].how.endswith(r", quotes written as \"")


def test_a_backslash_before_the_quote_that_ends_a_text_stays(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,name\n1,"C:\\dir\\"\n2,"a \\""b"\n3,7\\" disc\n')
    table = read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {}))
    assert table.frame["name"].to_list() == ["C:\\dir\\", 'a \\"b', '7\\" disc']
    (tmp_path / "a.csv").write_text('id,name\n1,"C:\\dir\\"\n2,"7\\" disc"\n')
    with pytest.raises(
        UserError, match=r'a quote in a text is written as \\" in line 3, but a backslash ends a text in line 2; write'
    ):
        read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {}))


def test_unreadable_rows_are_numbered_as_a_spreadsheet_numbers_them(tmp_path: Path) -> None:
    lines = ["id,name", *(f"{i},n{i}" for i in range(300))]
    lines[10], lines[20] = "9", "19,a,b"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    table = read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {}))
    assert table.bad == ["a.csv row 11: 1 fields, not 2", "a.csv row 21: 3 fields, not 2"]
    for index in (0, 8, 9, 17, 18, 297):
        number = int(table.place(index).rpartition(" ")[2])
        assert lines[number - 1] == ",".join(table.frame.row(index))


def test_windows_text_keeps_its_euro_sign_and_quotes(tmp_path: Path) -> None:
    """In Latin-1, the same bytes are control characters."""
    for text, how in (("1,Tee 5 € – „gut“", "Windows-1252"), ("1,Käse", "Latin-1")):
        (tmp_path / "a.csv").write_bytes(f"id,name\n{text}\n".encode("windows-1252"))
        table = read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {}))
        assert table.frame.rows() == [tuple(text.split(",", 1))]
        assert table.files[0].how.endswith(how)


def test_text_that_is_neither_utf8_nor_windows_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,name\n1,K\xe4se\n2,\x8f\x8d\n")
    with pytest.raises(UserError, match=r"a\.csv: its text is neither UTF-8 nor Windows-1252 \(line 3\); save it as UTF-8$"):
        read_tables([tmp_path / "a.csv"], Wanted({"id": "id"}, {}))


@pytest.mark.parametrize("above", ["\n", "\n\n   \n", "\r\n", "sep=,\n"])
@pytest.mark.parametrize("header", [True, False])
def test_lines_above_the_first_row_are_no_rows_but_count(tmp_path: Path, above: str, header: bool) -> None:
    """Blank lines, and the one that tells Excel the separator."""
    (tmp_path / "a.csv").write_text(f"{above}{'id,name' * header}\n7,x\n8,y\n", newline="")
    wanted = Wanted({"id": "id", "name": "name"} if header else {"id": 1, "name": 2}, {})
    table = read_tables([tmp_path / "a.csv"], wanted)
    assert table.frame.rows() == [("7", "x"), ("8", "y")]
    assert table.place(0) == f"a.csv row {above.count(chr(10)) + 2}"


def test_blank_rows_count_as_a_spreadsheet_counts_them(tmp_path: Path) -> None:
    """A text of several lines is one row there, also where some of its lines are blank."""
    lines = ["", "id,name", *(f"{i},n{i}" for i in range(300))]
    lines[9], lines[20], lines[30], lines[40] = "", "", "28", '38,"a\n\nb"'
    (tmp_path / "a.csv").write_text("\n".join([*lines, "", ""]))
    table = read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {}))
    assert table.bad == ["a.csv row 31: 1 fields, not 2"]
    for index, row in enumerate(table.frame["id"]):
        number = int(table.place(index).rpartition(" ")[2])
        assert lines[number - 1].startswith(f"{row},")


@pytest.mark.parametrize("rest", ["A film::Adventure|Animation|Children|Comedy|Fantasy", "A, B, C, D, and E::Drama"])
def test_colons_separate_whatever_else_the_fields_hold(tmp_path: Path, rest: str) -> None:
    (tmp_path / "movies.dat").write_text("".join(f"{i}::{rest}\n" for i in (1, 2)))
    table = read_tables([tmp_path / "movies.dat"], Wanted({"id": 1, "name": 2}, {"genres": 3}))
    assert table.frame.rows() == [(i, *rest.split("::")) for i in "12"]


def test_colons_in_the_texts_of_a_csv_file_separate_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,name\n1,std::map\n2,std::set\n")
    assert read_tables([tmp_path / "a.csv"], Wanted({"id": "id", "name": "name"}, {})).frame["name"].to_list() == [
        "std::map",
        "std::set",
    ]


def test_a_field_larger_than_a_block_is_read_and_an_open_quote_before_as_much_is_named(tmp_path: Path) -> None:
    path, long, wanted = tmp_path / "a.csv", "word " * 500_000, Wanted({"id": "id", "name": "name"}, {})
    path.write_text(f'id,name\n1,"{long}"\n2,x,y\n' + "3,z\n" * 200)
    table = read_tables([path], wanted)
    assert table.frame["name"].to_list() == [long, *["z"] * 200]
    assert table.bad == ["a.csv row 3: 3 fields, not 2"]
    path.write_text('id,name\n1,a\n2,"open\n' + "3,filler\n" * 200_000)
    with pytest.raises(UserError, match=r"a\.csv: line 3: a quote opens and is never closed"):
        read_tables([path], wanted)


def test_a_header_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    for text in ("id,name", "id,name\n", "\nid,name\n\n"):
        (tmp_path / "a.csv").write_text(text)
        assert read_tables([tmp_path / "a.csv"], Wanted({"id": "id"}, {}, others=True)).frame.to_dict(as_series=False) == {
            "id": [],
            "name": [],
        }
