"""Gains over Base and their intervals, against closed forms."""

import math
from pathlib import Path

import polars as pl
import pytest

from pipeline.report import gains
from pipeline.report.gains import ALL_PAIRS, by_group, over_base
from pipeline.report.users import user_groups

FIRST, TENTH = 1.0, 1 / math.log2(11)  # NDCG of ranks 1 and 10


def cells(ranks: dict[tuple[str, str, str], int], most: int = 1000) -> pl.DataFrame:
    """Write cells of the tiny dataset's users, all with the same rank; return their rows."""
    users = pl.read_parquet("data/sequences/tiny/sequences.parquet")["user_id"].head(most)
    found = []
    for cell, rank in ranks.items():
        directory = Path("grid/cells") / "-".join(cell)
        directory.mkdir(parents=True)
        pl.DataFrame({"seed": [0] * len(users), "user_id": users, "rank": [rank] * len(users)}).write_parquet(
            directory / "ranks.parquet"
        )
        found.append(dict(zip(("dataset", "backbone", "adapter"), cell, strict=True)) | {"run_directory": f"{directory}/seed-0"})
    return pl.DataFrame(found).with_columns(seed=0)


RANKS = {("tiny", "sasrec", "base"): 10, ("tiny", "sasrec", "morec"): 1, ("tiny", "sasrec", "spectran"): 30}


@pytest.mark.usefixtures("project")
def test_gains_are_relative_to_base_and_sorted() -> None:
    found = over_base(cells(RANKS), 20)
    assert found["adapter"].to_list() == ["morec", "base", "spectran"]
    assert found["gain"].to_list() == pytest.approx([FIRST / TENTH - 1, 0, -1])
    assert found["low"].to_list() == pytest.approx(found["high"].to_list()), "every user has the same gain"
    assert found["low"].to_list() == pytest.approx(found["gain"].to_list())


@pytest.mark.usefixtures("project")
def test_the_mean_over_pairs_comes_first_and_is_of_what_every_pair_has() -> None:
    more = {("tiny", "hstu", "base"): 10, ("tiny", "hstu", "morec"): 10}
    found = over_base(cells(RANKS | more), 20)
    overall = found.filter(dataset=ALL_PAIRS)
    assert found["dataset"][0] == ALL_PAIRS
    assert overall["adapter"].to_list() == ["morec", "base"]
    assert overall["gain"][0] == pytest.approx((FIRST + TENTH) / (2 * TENTH) - 1)


@pytest.mark.usefixtures("project")
def test_without_base_there_are_means_but_no_gains() -> None:
    rows = cells({cell: rank for cell, rank in RANKS.items() if cell[2] != "base"})
    assert over_base(rows, 20)["gain"].null_count() == 2
    assert over_base(rows, 20)["mean"].to_list() == pytest.approx([FIRST, 0])
    assert by_group(rows, 20).height == 0


@pytest.mark.usefixtures("project")
def test_base_alone_gains_nothing() -> None:
    rows = cells({("tiny", "sasrec", "base"): 10})
    assert over_base(rows, 20)["gain"].to_list() == [0]
    assert by_group(rows, 20).height == 0


@pytest.mark.usefixtures("project")
def test_every_group_of_users_has_its_gain() -> None:
    found = by_group(cells(RANKS), 20).filter(adapter="morec")
    assert set(found["by"]) == {"popularity", "history"}
    assert found["gain"].to_list() == pytest.approx([FIRST / TENTH - 1] * found.height)
    users = pl.read_parquet("data/sequences/tiny/sequences.parquet").height
    assert found.group_by("by").agg(pl.col("users").sum())["users"].to_list() == [users, users]


@pytest.mark.usefixtures("project")
def test_one_user_has_a_gain_but_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cells(RANKS, most=1)
    (user,) = pl.read_parquet("grid/cells/tiny-sasrec-base/ranks.parquet")["user_id"]
    groups = user_groups("tiny").filter(user_id=user)
    monkeypatch.setattr(gains, "user_groups", lambda dataset: groups)  # the dataset has this user only
    for found in (over_base(rows, 20), by_group(rows, 20)):
        assert found["users"].to_list() == [1] * found.height
        assert found["gain"].is_not_null().all()
        assert found["low"].is_null().all()
        assert found["high"].is_null().all()
