"""`python -m stages.recommend` as a user types it."""

import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from pipeline.serving.recommender import Recommender
from stages import recommend

pytestmark = pytest.mark.xdist_group("serving")


@pytest.fixture
def typed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["recommend", *arguments])
        return recommend.main()

    return run


Typed = Callable[..., str]


def test_a_users_recommendations_are_a_table(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    recommender = Recommender.load()
    user = recommender.users["user_id"][0]
    assert typed("--user", user, "-k", "3").startswith("3 items by tiny-sasrec-spectran")
    printed = capsys.readouterr()
    expected = recommender.recommend([recommender.history_of(user)], k=3)
    for line, row in zip(printed.out.splitlines(), expected.iter_rows(named=True), strict=True):
        assert line.split()[:2] == [str(row["rank"]), row["item_id"]]
        assert line.endswith(row["title"])
    assert printed.err == ""


@pytest.mark.parametrize("user", ["gone", "never seen"])
def test_a_user_without_history_is_told(typed: Typed, capsys: pytest.CaptureFixture[str], user: str) -> None:
    assert typed("--user", user) == "10 items by popularity"
    assert capsys.readouterr().err.splitlines() == [
        f"recommend: user '{user}' has no item of the catalogue in the history: the most popular items instead"
    ]


def test_a_user_whom_the_core_filter_dropped_is_served_from_their_history(
    typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = Recommender.load().item_ids
    typed("--user", "rare", "-k", "4")
    by_user = capsys.readouterr().out
    typed("--history", ids[3], ids[7], "-k", "4")
    assert by_user == capsys.readouterr().out


@pytest.mark.parametrize("by", ["user_id", "history"])
def test_a_file_of_requests_becomes_a_file_of_answers(
    typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    recommender = Recommender.load()
    users = [recommender.users["user_id"][0], "never seen", "rare"]
    histories = [recommender.history_of(user) for user in users]
    requests, answers = tmp_path / "requests.parquet", tmp_path / "answers.parquet"
    pl.DataFrame({by: users if by == "user_id" else histories}).write_parquet(requests)
    assert typed("--requests", str(requests), "--out", str(answers), "-k", "4").startswith("12 items for 3 requests in ")
    assert "1 of 3 requests have no item" in capsys.readouterr().err
    found, expected = pl.read_parquet(answers), recommender.recommend(histories, k=4)
    assert found.drop("user_id", strict=False).equals(expected)
    if by == "user_id":
        assert found["user_id"].to_list() == [user for user in users for _ in range(4)]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"user": ["a"]}, "one column user_id or history is needed, found user; did you mean 'user_id'?"),
        ({"user_id": ["a"], "history": [["b"]]}, "one column user_id or history is needed, found user_id, history"),
        ({"user_id": [1]}, "column user_id holds Int64, expected String"),
        ({"history": ["a"]}, "column history holds String, expected List(String)"),
        ({"history": [[1]]}, "column history holds List(Int64), expected List(String)"),
        ({"history": [["a"], None]}, "column history has 1 missing values"),
        ({"history": [["a", None], []]}, "column history has 1 missing values"),
        ({"history": [[], ["no such item"]]}, "history 1: unknown item 'no such item'"),
    ],
)
def test_a_wrong_file_of_requests_is_one_line_and_nothing_is_written(
    typed: Typed, tmp_path: Path, table: dict, says: str
) -> None:
    requests, answers = tmp_path / "requests.parquet", tmp_path / "answers.parquet"
    pl.DataFrame(table).write_parquet(requests)
    with pytest.raises(UserError) as refused:
        typed("--requests", str(requests), "--out", str(answers))
    assert str(refused.value).startswith(f"{requests}: ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.glob("*answers*")) == []


def test_a_truncated_file_of_requests_is_one_line(typed: Typed, tmp_path: Path) -> None:
    requests = tmp_path / "requests.parquet"
    pl.DataFrame({"user_id": ["a"] * 1000}).write_parquet(requests)
    requests.write_bytes(requests.read_bytes()[:-50])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        typed("--requests", str(requests), "--out", str(tmp_path / "answers.parquet"))
    with pytest.raises(UserError, match="no such file"):
        typed("--requests", str(tmp_path / "none.parquet"), "--out", str(tmp_path / "answers.parquet"))


@pytest.mark.parametrize(
    "arguments", [[], ["--history"], ["--user", "a", "--history", "b"], ["--requests", "a.parquet"], ["--user", "a", "-k", "ten"]]
)
def test_a_wrong_command_line_says_how_it_is_used(typed: Typed, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        typed(*arguments)
    assert "recommend: error: " in capsys.readouterr().err
