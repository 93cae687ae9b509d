"""JSON lines: values of mixed types, and lines that are none."""

import json
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from pipeline.data.table_file import Wanted
from pipeline.data.tables import read_tables


def test_a_line_of_json_that_is_not_utf8_is_named_and_dropped(tmp_path: Path) -> None:
    """With its letters replaced, different ids would become one."""
    lines = [json.dumps({"id": str(row), "name": "é", "at": 1}, ensure_ascii=False).encode() for row in range(300)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"id": "\xe9", "name": "a", "at": 1}']))
    table = read_tables([tmp_path / "a.jsonl"], Wanted({"id": "id", "name": "name", "at": "at"}, {}))
    assert table.frame["id"].to_list() == [str(row) for row in range(300)]
    assert table.bad == ["a.jsonl row 301: not UTF-8"]


def test_many_unreadable_lines_are_refused_and_three_of_many_alike_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(['{"id": 1}', *["{"] * 12]))
    with pytest.raises(UserError) as caught:
        read_tables([tmp_path / "a.jsonl"], Wanted({"id": "id"}, {}))
    text = str(caught.value)
    assert text.count("no JSON object") == 3
    assert "a.jsonl row 2: no JSON object; a.jsonl row 3" in text
    assert text.endswith("; and 9 more")


def test_json_values_of_mixed_types_and_lists(tmp_path: Path) -> None:
    lines = [
        {"id": "007", "t": ["a", "b"], "d": {"x": 1}},
        {"id": 7, "t": [], "d": None},
        {"id": 8, "t": ["c"], "d": {"x": "y"}},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    frame = read_tables([tmp_path / "a.jsonl"], Wanted({"id": "id"}, {"t": "t"})).frame
    assert frame["id"].cast(pl.String).to_list() == ["007", "7", "8"]


def test_long_ids_keep_their_digits_beside_a_fraction(tmp_path: Path) -> None:
    """As floats, all of these would be 4.611686018427388e+18: one user."""
    ids = [2**62 + 1, 2**62 + 2, 1.5]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": {value}, "at": 7}}\n' for value in ids))
    table = read_tables([tmp_path / "a.jsonl"], Wanted({"id": "id"}, {"at": "at"}))
    assert table.frame["id"].to_list() == ["4611686018427387905", "4611686018427387906", "1.5"]
    assert table.frame["at"].to_list() == [7, 7, 7]


def test_an_object_for_a_needed_value_is_a_bad_row_not_a_missing_value(tmp_path: Path) -> None:
    """Missing values are dropped however many; of bad rows, more than 1 % refuse the file."""
    objects = ['{"id": 5, "at": {"$date": 1}}', '{"id": [5], "at": 1}']
    lines = ['{"id": 1, "at": 7, "more": {"x": 1}}'] * 300
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, *objects]))
    table = read_tables([tmp_path / "a.jsonl"], Wanted({"id": "id", "at": "at"}, {"more": "more"}))
    assert table.bad == ["a.jsonl row 301: at is an object or a list", "a.jsonl row 302: id is an object or a list"]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:50], *objects]))
    with pytest.raises(UserError, match="2 rows of 52 cannot be read"):
        read_tables([tmp_path / "a.jsonl"], Wanted({"id": "id", "at": "at"}, {}))


def test_blank_lines_count(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"id": 1}\n\n{"id": 2}\n')
    table = read_tables([tmp_path / "a.jsonl"], Wanted({"id": "id"}, {}))
    assert [table.place(row) for row in (0, 1)] == ["a.jsonl row 2", "a.jsonl row 4"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[\n{"id": 1}\n]', "a JSON array; write one object a line: `jq -c '.[]' a.json`"),
        (b'[{"id": 1}]', "a JSON array; write one object a line: `jq -c '.[]' a.json`"),
        ('{"id": "é"}'.encode("latin-1"), "no line can be read (row 1: not UTF-8); write a JSON object a line, in UTF-8, or "),
        ('{"id": 1}'.encode("utf-16"), "no line can be read (row 1: not UTF-8); write a JSON object a line, in UTF-8, or "),
        (b"id,name\n1,x\n", "no line can be read (row 1: no JSON object); write a JSON object a line, in UTF-8, or give a text "),
    ],
)
def test_json_of_another_form_is_refused_with_what_to_do(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_tables([tmp_path / "a.json"], Wanted({"id": "id"}, {}))
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: {says}")
    assert "\n" not in str(caught.value)
