"""The split by time: against a loop over the log, and with canaries that training must not see."""

import datetime
import json
import random
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from common.errors import UserError
from pipeline.artifacts import atomic_directory
from pipeline.data.dropped import dropped
from pipeline.data.interactions import build_sequences, cut_of, in_unit
from pipeline.data.sources import Raw
from pipeline.data.times import UNITS
from pipeline.grid.baselines import item_counts
from pipeline.grid.execution import evaluated, trained
from pipeline.params import Preprocess, load_params
from pipeline.report.users import user_groups
from pipeline.runs import Run
from pipeline.training.batches import items_before_test, load_sequences
from pipeline.training.sequences import popularity, read_sequences, split_of

SetParams = Callable[[dict[str, Any]], None]
DAY = 86_400
SUMMER = 1_500_000_000  # s, in 2017
CPU = torch.device("cpu")
DATES = {"preprocess.split": "global", "preprocess.valid_from": datetime.date(2013, 8, 28), "preprocess.test_from": "2013-10-20"}


def random_log(seed: int, users: int = 40, items: int = 12, days: int = 100) -> pl.DataFrame:
    """Every user has 3 to 20 interactions, several of them on the same day."""
    draw = random.Random(seed)
    rows = [
        (f"u{user:02d}", f"i{draw.randrange(items):02d}", draw.randrange(days) * DAY)
        for user in range(users)
        for _ in range(draw.randrange(3, 21))
    ]
    return pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row").unique(
        maintain_order=True
    )


def raw_of(log: pl.DataFrame, unit: str = "s") -> Raw:
    items = log["item_id"].unique().sort()
    return Raw(log, pl.DataFrame({"item_id": items, "title": "Title " + items}), time_unit=unit)


def options(**changes: Any) -> Preprocess:
    return Preprocess.model_validate(
        {"core": 3, "ties": "item", "split": "global", "valid_from": 50 * DAY, "test_from": 75 * DAY} | changes
    )


@pytest.mark.parametrize("cap", [4, 6, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_is_that_of_a_loop_over_the_log(seed: int, cap: int) -> None:
    """After the core filter, which drops nothing here: training before valid_from, capped; the first item of each later part."""
    log = random_log(seed)
    made = build_sequences(raw_of(log), options(cap=cap))
    names = made.items["item_id"].to_list()
    expected, counts = {}, {"training_users": 0, "validation_users": 0, "test_users": 0}
    for user in sorted(set(log["user_id"])):
        theirs = sorted((time, item) for who, item, time in log.iter_rows() if who == user)
        early = [(time, item) for time, item in theirs if time < 50 * DAY]
        # The cap prefers later times, and at equal times the lower item.
        early = sorted(sorted(early, key=lambda pair: (-pair[0], pair[1]))[:cap])
        middle = [(time, item) for time, item in theirs if 50 * DAY <= time < 75 * DAY]
        late = [(time, item) for time, item in theirs if time >= 75 * DAY]
        valid = len(early) if early and middle else None
        test = len(early) + len(middle) if late and (early or middle) else None
        expected[user] = ([item for _, item in early + middle + late], len(early), valid, test)
        counts["training_users"] += len(early) > 1
        counts["validation_users"] += valid is not None
        counts["test_users"] += test is not None
    found = {
        user: ([names[i] for i in items], train, valid, test)
        for user, items, train, valid, test in made.users.select("user_id", "items", "train", "valid", "test").iter_rows()
    }
    assert found == expected
    assert 0 < counts["test_users"] < len(expected), "some users have no target"
    assert made.statistics["split"] == {"valid_from": 50 * DAY, "test_from": 75 * DAY} | counts
    said = dropped(raw_of(log), made, options(cap=cap))[-1]
    assert f"{counts['test_users']} users test it" in said.text


def test_leave_one_out_writes_what_it_wrote_before_there_was_a_choice() -> None:
    made = build_sequences(raw_of(random_log(0)), Preprocess(core=3))
    assert made.users.columns == ["user_id", "items", "timestamps"]
    assert "split" not in made.statistics


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (datetime.date(1970, 1, 3), "s", 2 * DAY),
        ("1970-01-03", "ms", 2 * DAY * 1000),
        (datetime.datetime(1970, 1, 1, 0, 0, 1, 500_000, datetime.UTC), "ms", 1500),
        ("1970-01-01T02:00:00+01:00", "s", 3600),
        (172800, "ns", 172800),
        ("172800", "s", 172800),
        (172800.0, "s", 172800),
        (1_500_000_000_000, "s", 1_500_000_000),
    ],
)
def test_points_in_time(value: Any, unit: str, expected: int) -> None:
    """YAML brings dates, datetimes, texts and numbers; a number too small for today is in the log's unit."""
    assert cut_of(options(valid_from=value, test_from=expected + 1), unit) == {"valid_from": expected, "test_from": expected + 1}


@pytest.mark.parametrize("own", UNITS)
@pytest.mark.parametrize("unit", UNITS)
def test_a_number_of_any_unit_is_brought_to_the_logs(own: str, unit: str) -> None:
    """A log of milliseconds that are all whole seconds is kept in seconds; whoever writes milliseconds means these."""
    assert in_unit(SUMMER * UNITS[own], unit) == SUMMER * UNITS[unit]
    assert in_unit(5, unit) == 5, "a counter is a counter"


def test_a_number_finer_than_the_log_is_rounded_up() -> None:
    """Whatever is at least the one is at least the other."""
    assert in_unit(SUMMER * 1000 + 1, "s") == SUMMER + 1


@pytest.mark.parametrize("value", ["soon", "2014-13-01", 1.5, True, [1]])
def test_what_is_no_point_in_time_is_refused(set_params: SetParams, value: Any) -> None:
    set_params({"preprocess.valid_from": value})
    with pytest.raises(UserError, match=r"params.yaml: preprocess.valid_from|params.yaml: preprocess: valid_from"):
        load_params()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test_from": 10**9},
            "no user has an interaction from preprocess.test_from, 1000000000, on and one before it; the inter",
        ),
        ({"valid_from": 60 * DAY + 1, "test_from": 60 * DAY + 2}, "until preprocess.test_from, 5184002, and one before it"),
        (
            {"valid_from": -5},
            "no user has two interactions before preprocess.valid_from, -5; .* from 1970-01-01 00:00:00 to 1970",
        ),
        ({"valid_from": 80 * DAY}, "preprocess.valid_from, 6912000, is not before preprocess.test_from, 6480000"),
        ({"valid_from": None}, "preprocess.valid_from is missing, which split global needs"),
    ],
)
def test_dates_that_leave_nobody_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        build_sequences(raw_of(random_log(0)), options(**changes))
    assert "\n" not in str(refused.value)


def test_a_selected_dataset_needs_its_dates_and_a_source_may_have_its_own(set_params: SetParams) -> None:
    set_params({"preprocess.split": "global"})
    with pytest.raises(
        UserError, match=r"the split of tiny is global, so preprocess or sources.tiny needs valid_from and test_from"
    ):
        load_params()
    set_params({"sources.tiny.valid_from": datetime.date(2013, 8, 28), "sources.tiny.test_from": 1382227200})
    made = load_params().of_preprocessing("tiny")["preprocess"]
    assert (made["split"], made["valid_from"], made["test_from"]) == ("global", "2013-08-28", 1382227200)
    set_params({"preprocess.split": "leave_one_out"})
    assert load_params().of_preprocessing("tiny")["preprocess"] == {"core": 5, "cap": 13, "ties": "shuffled"}


@pytest.mark.parametrize("name", ["grid", "grid.ablations", "grid.dimensions", "grid.tuning"])
def test_a_dataset_of_any_list_of_the_grid_needs_its_dates(set_params: SetParams, name: str) -> None:
    """Without them its preprocessing would fail after the other datasets were embedded and trained."""
    timed = {"sources.timed": {"kind": "demo", "split": "global"}, "grid.datasets": ["tiny"]}
    set_params(timed)
    load_params()
    set_params({f"{name}.datasets": ["tiny", "timed"]})
    with pytest.raises(UserError, match=r"the split of timed is global, so preprocess or sources.timed needs valid_from"):
        load_params()


@pytest.mark.parametrize(
    ("valid", "test"),
    [
        (datetime.date(2013, 10, 20), "2013-08-28"),
        ("2013-10-20", "2013-10-20T02:00:00+02:00"),
        (1_600_000_000, 1_500_000_000),
        (7, 7),
    ],
)
def test_dates_in_the_wrong_order_are_refused_with_the_parameters(set_params: SetParams, valid: Any, test: Any) -> None:
    set_params({"sources.tiny.split": "global", "sources.tiny.valid_from": valid, "preprocess.test_from": test})
    with pytest.raises(UserError) as refused:
        load_params()
    assert str(refused.value) == f"params.yaml: sources.tiny.valid_from, {valid}, is not before preprocess.test_from, {test}"
    set_params({"sources.tiny.split": "leave_one_out"})
    load_params()


@pytest.mark.parametrize(("valid", "test"), [(1_300_000_000_000, 1_400_000_000), ("2013-08-28", 1_382_227_200)])
def test_dates_of_different_units_are_compared_with_the_log(set_params: SetParams, valid: Any, test: Any) -> None:
    set_params({"sources.tiny.split": "global", "sources.tiny.valid_from": valid, "sources.tiny.test_from": test})
    load_params()


def test_a_message_names_the_option_that_holds_the_date(set_params: SetParams, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"sources.tiny.split": "global", "sources.tiny.valid_from": "2013-08-28"}
    for changes, says in (
        ({"preprocess.test_from": "2099-01-01"}, "no user has an interaction from preprocess.test_from, 2099-01-01, on"),
        ({"sources.tiny.test_from": "2098-01-01"}, "no user has an interaction from sources.tiny.test_from, 2098-01-01, on"),
        ({"sources.tiny.test_from": 7}, "sources.tiny.valid_from, 2013-08-28, is not before sources.tiny.test_from, 7"),
        (
            {"sources.tiny.valid_from": "1980-01-01", "sources.tiny.test_from": "2013-10-20"},
            "before sources.tiny.valid_from, 1980",
        ),
    ):
        set_params(own | changes)
        with pytest.raises(UserError, match=re.escape(says)):
            preprocess(monkeypatch)


def preprocess(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["preprocess", "tiny"])
    import_module("stages.preprocess").main()
    return Path("data/sequences/tiny")


def move(folder: Path, canary: int, start: int) -> None:
    """Make every interaction from `start` on one with `canary`, and every other with `canary` one with the item before it."""
    users = pl.read_parquet(folder / "sequences.parquet")
    changed = [
        [canary if time >= start else item - (item == canary) for item, time in zip(items, times, strict=True)]
        for items, times in users.select("items", "timestamps").iter_rows()
    ]
    rewrite(folder, users.with_columns(items=pl.Series(changed, dtype=pl.List(pl.Int32))))


def rewrite(folder: Path, users: pl.DataFrame) -> None:
    made_from = json.loads((folder / "sidecar.json").read_text())
    files = {name: (folder / name).read_bytes() for name in ("items.parquet", "statistics.json")}
    with atomic_directory(
        folder, {name: made_from[name] for name in ("dataset", "preprocess") if name in made_from}
    ) as directory:
        users.write_parquet(directory / "sequences.parquet")
        for name, content in files.items():
            (directory / name).write_bytes(content)


def test_no_reader_of_training_items_sees_what_comes_after_the_cut(
    project: Path, set_params: SetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary is every item from valid_from on, and none before."""
    set_params(DATES)
    folder = preprocess(monkeypatch)
    start = json.loads((folder / "statistics.json").read_text())["split"]["valid_from"]
    canary = 40
    move(folder, canary, start)
    users, n_items = read_sequences(folder)
    split = load_sequences(folder, 50, CPU)
    assert split.valid_target.unique().tolist() == split.test_target.unique().tolist() == [canary]
    assert canary not in split.train
    assert canary not in split.valid_history
    assert canary in split.test_history, "a test history has the items before the test target"
    assert popularity(users, n_items)[canary] == 0
    assert item_counts(split.train.numpy(), n_items)[canary] == 0
    flat = users.explode("items", "timestamps")
    assert popularity(users, n_items).sum() == (flat["timestamps"] < start).sum()
    before = items_before_test(folder)(torch.arange(len(split.user_ids)))
    assert before.shape[0] == len(split.test_target) == users["test"].count()
    groups = user_groups("tiny")
    assert set(groups["user_id"]) == set(split.user_ids)
    assert set(groups.filter(by="popularity")["group"]) == {"tail"}
    assert split_of(folder) == "by time: validation from 2013-08-28, test from 2013-10-20"


@pytest.mark.usefixtures("project")
def test_what_happens_from_the_test_on_changes_no_weight_and_only_users_with_a_target_are_tested(
    set_params: SetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLMInit, which reads popularity. The weights are the same whatever is clicked from test_from on; the ranks are not."""
    set_params(DATES | {"adapters.llminit.popular_share": 0.2, "train.epochs": 2})
    folder = preprocess(monkeypatch)
    start = json.loads((folder / "statistics.json").read_text())["split"]["test_from"]
    weights, ranks = [], []
    for canary in (41, 40):
        move(folder, canary, start)  # no training item is one of them from here on
    for canary in (41, 40):
        move(folder, canary, start)
        run = Run.of(load_params(), adapter="llminit")
        weights.append((trained(run) / "model.safetensors").read_bytes())
        ranks.append(pl.read_parquet(evaluated(run) / "ranks.parquet"))
    assert weights[0] == weights[1]
    tested = read_sequences(folder)[0].filter(pl.col("test").is_not_null())["user_id"]
    assert ranks[0]["user_id"].equals(tested)
    assert not ranks[0]["rank"].equals(ranks[1]["rank"])
    assert 0 < len(tested) < read_sequences(folder)[0].height


def test_ties_are_counted_where_the_split_is(project: Path, set_params: SetParams, monkeypatch: pytest.MonkeyPatch) -> None:
    set_params(DATES)
    folder = preprocess(monkeypatch)
    users, _ = read_sequences(folder)
    steps, same = 0, 0
    tied: dict[str, list[bool]] = {"valid": [], "test": []}
    for row in users.iter_rows(named=True):
        times = row["timestamps"]
        steps += max(0, row["train"] - 1)
        same += sum(times[i] == times[i - 1] for i in range(1, row["train"]))
        for name, found in tied.items():
            if row[name] is not None:
                found.append(times[row[name]] == times[row[name] - 1])
    said = json.loads((folder / "statistics.json").read_text())["tied"]
    assert said["steps"] == pytest.approx(same / steps)
    assert said["validation"] == pytest.approx(np.mean(tied["valid"]))
    assert said["test"] == pytest.approx(np.mean(tied["test"]))
