"""Files of requests and of answers."""

import os
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from pipeline.serving.requests import check_out, read_requests, write_answers


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt32, pl.Categorical, pl.Enum(["7", "8"])])
def test_ids_of_requests_are_text_as_in_the_log(tmp_path: Path, kind: pl.DataType) -> None:
    given = pl.Series(["7", "8"]).cast(pl.Int64 if kind in (pl.Int64, pl.UInt32) else pl.String).cast(kind)
    pl.DataFrame({"user_id": given}).write_parquet(tmp_path / "users.parquet")
    pl.DataFrame({"history": pl.Series([given, given[:0]])}).write_parquet(tmp_path / "histories.parquet")
    assert read_requests(tmp_path / "users.parquet")["user_id"].to_list() == ["7", "8"]
    assert read_requests(tmp_path / "histories.parquet")["history"].to_list() == [["7", "8"], []]


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("user_id", ["a", None], "no user_id in row 1 (rows count from 0); name a user, or remove the row"),
        ("user_id", [None, 7, None], "no user_id in 2 rows, the first of them row 0 (rows count from 0); name a user, or remove"),
        ("history", [["a"], [], None], "no history in row 2 (rows count from 0); write an empty list for a user without one"),
        ("history", [["a"], ["b", None, None]], "a missing item in the history in row 1 (rows count from 0); leave it out"),
        ("history", [None], "no history in row 0 (rows count from 0); write an empty list for a user without one"),
    ],
)
def test_a_gap_names_its_row_and_what_to_do(tmp_path: Path, column: str, values: list, says: str) -> None:
    pl.DataFrame({column: values}).write_parquet(tmp_path / "requests.parquet")
    with pytest.raises(UserError) as caught:
        read_requests(tmp_path / "requests.parquet")
    assert str(caught.value).startswith(f"{tmp_path / 'requests.parquet'}: {says}")


def test_a_request_of_one_file_is_not_answered_from_another(tmp_path: Path) -> None:
    """Polars would take the brackets for a glob, and read `requests 1.parquet`."""
    for name in ("requests [1]", "requests 1"):
        pl.DataFrame({"user_id": [name]}).write_parquet(tmp_path / f"{name}.parquet")
    assert read_requests(tmp_path / "requests [1].parquet")["user_id"].to_list() == ["requests [1]"]


def test_answers_name_the_users_of_the_requests(tmp_path: Path) -> None:
    """The second user has no answer, as if every item were denied."""
    answers = pl.DataFrame(
        {
            "request": [0, 2],
            "rank": [1, 1],
            "item_id": ["x", "y"],
            "title": ["X", "Y"],
            "score": [0.5, 0.4],
            "source": ["model"] * 2,
        },
        schema_overrides={"request": pl.UInt32},
    )
    write_answers(answers, pl.DataFrame({"user_id": ["a", "b", "c"]}), tmp_path / "by_user.parquet")
    write_answers(answers, pl.DataFrame({"history": [["x"], [], ["z"]]}), tmp_path / "by_history.parquet")
    written = pl.read_parquet(tmp_path / "by_user.parquet")
    assert written.columns == ["request", "user_id", "rank", "item_id", "title", "score", "source"]
    assert written.select("user_id", "item_id").rows() == [("a", "x"), ("c", "y")]
    assert pl.read_parquet(tmp_path / "by_history.parquet").equals(answers)
    check_out(tmp_path / "by_user.parquet", [])  # answers may be replaced by others


def test_answers_replace_nothing_else(tmp_path: Path) -> None:
    """It may be the log, or the pipeline's sequences."""
    other = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": ["a"], "item_id": ["x"]}).write_parquet(other)
    (tmp_path / "text.parquet").write_text("not Parquet")
    for path in (other, tmp_path / "text.parquet"):
        with pytest.raises(UserError, match=r"would replace a file that holds no answers; choose another name, or remove it$"):
            check_out(path, [])
    (tmp_path / "made-by-mktemp.parquet").touch()
    check_out(tmp_path / "made-by-mktemp.parquet", [])
    check_out(tmp_path / "new.parquet", [])


def test_a_name_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/anfr\xe4ge.parquet"))
    for refused in (read_requests, lambda path: check_out(path, [])):
        with pytest.raises(UserError, match=r"anfr\\udce4ge\.parquet': the name of this file is not UTF-8; rename it$"):
            refused(path)
