"""`python -m stages.recommend` as a user types it."""

import re
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import polars as pl
import pytest
import yaml

from common.errors import UserError
from pipeline.serving.recommender import Recommender
from stages import recommend
from tests.params import change_params

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


def test_without_the_log_a_line_says_what_may_come_again(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    """The users of the sequences are served without it; only what `cap` left out of their histories is in the log."""
    change_params(Path("params.yaml"), {"preprocess.cap": 4})
    shutil.rmtree("data/raw/tiny")
    user = Recommender.load().users["user_id"][4]
    assert typed("--user", user).startswith("10 items by tiny-")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recommend: data/raw/tiny/sidecar.json is missing")
    assert line.endswith("; without it, items that the filters left out may come again")
    typed("--user", user, "--keep-history")
    assert capsys.readouterr().err == ""
    params = yaml.safe_load(Path("params.yaml").read_text())
    chosen = {"dataset": "demo", "grid.datasets": ["demo"], "sources": {"demo": params["sources"]["demo"]}, "templates": {}}
    change_params(Path("params.yaml"), chosen)
    assert typed("--user", user).startswith("10 items by tiny-")
    assert capsys.readouterr().err.startswith("recommend: params.yaml"), "one line, also for a log that is no longer listed"


def test_unknown_items_are_passed_over_where_this_is_asked_for(
    typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recommender = Recommender.load()
    ids = recommender.item_ids
    with pytest.raises(UserError, match=r"--history: unknown item 'sold out'; items are those of .*, --skip-unknown passes over"):
        typed("--history", "sold out", ids[0])
    requests, answers = tmp_path / "requests.parquet", tmp_path / "answers.parquet"
    pl.DataFrame({"history": [["sold out", ids[0], ids[1]], ["sold out"]]}).write_parquet(requests)
    typed("--requests", str(requests), "--out", str(answers), "--deny", ids[5], "gone", "--skip-unknown")
    told = capsys.readouterr().err
    assert "recommend: passed over 3 unknown items ('sold out', 'sold out', …)" in told
    assert "1 of 2 requests have no item of the catalogue" in told
    expected = recommender.recommend([ids[:2], []], deny=[ids[5]])
    assert pl.read_parquet(answers).equals(expected)


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
        ({"visitor": ["a"]}, "found visitor; name the column with the users user_id, or that with lists of items history"),
        ({}, "found no column; name"),
        ({"user_id": ["a"], "history": [["b"]]}, "found both user_id and history; remove one of them"),
        ({"user_id": [1.5]}, "column user_id holds Float64; write ids as text or whole numbers"),
        ({"user_id": [["a"]]}, "column user_id holds List(String); write ids as text or whole numbers"),
        ({"history": ["a"]}, "column history holds String; write lists of item ids, each text or a whole number"),
        ({"history": [[1.5]]}, "column history holds List(Float64); write lists of item ids"),
        ({"history": [[1]]}, "history 0: unknown item '1'"),
        ({"user_id": ["a", None]}, "no user_id in row 1 (rows count from 0)"),
        ({"history": [["a"], None]}, "no history in row 1 (rows count from 0)"),
        ({"history": [["a", None], []]}, "a missing item in the history in row 0 (rows count from 0)"),
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


def test_the_answers_never_replace_what_is_read(typed: Typed, tmp_path: Path) -> None:
    requests, folder = tmp_path / "requests.parquet", tmp_path / "folder"
    folder.mkdir()
    pl.DataFrame({"user_id": ["a"]}).write_parquet(requests)
    (tmp_path / "link.parquet").symlink_to(requests)
    before = requests.read_bytes()
    for out, says in (
        (requests, "would replace"),
        (folder / ".." / "requests.parquet", "would replace"),
        (tmp_path / "link.parquet", "would replace"),
        (folder, "is a folder; name a file in it"),
        (tmp_path / "answers.csv", "the answers are Parquet; choose a name that ends in .parquet"),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            typed("--requests", str(requests), "--out", str(out))
    assert requests.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"requests.parquet", "link.parquet", "folder", "project"}


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
def test_a_wrong_command_line_is_one_line_that_says_where_the_options_are_listed(
    typed: Typed, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        typed(*arguments)
    assert re.fullmatch(r"recommend: .*; `python -m stages\.recommend --help` lists the options\n", capsys.readouterr().err)


@pytest.mark.parametrize("stage", ["package", "recommend", "retrain"])
def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    module = import_module(f"stages.{stage}")
    for folder in (tmp_path, tmp_path / "nope"):
        monkeypatch.setattr(sys, "argv", [stage, "--checkpoint", str(folder), *(["--user", "a"] if stage == "recommend" else [])])
        with pytest.raises(UserError) as refused:
            module.main()
        assert str(refused.value) == (
            f"--checkpoint {folder}: there is no checkpoint in that folder; name that of a trained run, such as "
            "data/checkpoints/selected"
        )
