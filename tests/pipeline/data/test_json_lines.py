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


def test_many_unreadable_lines_are_refused_ten_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(['{"id": 1}', *["{"] * 12]))
    with pytest.raises(UserError) as caught:
        read_tables([tmp_path / "a.jsonl"], Wanted({"id": "id"}, {}))
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
    frame = read_tables([tmp_path / "a.jsonl"], Wanted({"id": "id"}, {"t": "t"})).frame
    assert frame["id"].cast(pl.String).to_list() == ["007", "7", "8"]
