"""Metrics of every user: comparisons by tests over users, and groups of items and users."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import permutation_test

from common.errors import UserError
from pipeline.grid.cells import Cell
from pipeline.report.tables import significance
from pipeline.report.users import comparisons, grouped, user_groups, with_groups
from pipeline.training.metrics import metrics
from tests.pipeline.report.values import rows

NO_RUNS = pl.DataFrame(schema={"dataset": pl.String, "backbone": pl.String, "adapter": pl.String, "why": pl.String})


@pytest.fixture
def ranked(project: Path) -> pl.DataFrame:
    """Return the rows of cells of the tiny dataset with random ranks: AlphaFuse and SpecTran tie, far ahead of Base."""
    users = pl.read_parquet("data/sequences/tiny/sequences.parquet")["user_id"]
    rng = np.random.default_rng(0)
    values: dict[tuple[str, str, str], list[float]] = {}
    for adapter, worst in (("base", 120), ("alphafuse", 42), ("spectran", 40)):
        cell = Cell("tiny", "sasrec", adapter)
        cell.directory.mkdir(parents=True)
        frames = [
            pl.DataFrame({"user_id": users, "rank": rng.integers(1, worst, len(users))})
            .with_columns(seed=pl.lit(seed))
            .sample(fraction=1, shuffle=True, seed=seed)
            for seed in (0, 1)
        ]
        pl.concat(frames).write_parquet(cell.directory / "ranks.parquet")
        values["tiny", "sasrec", adapter] = [metrics(frame["rank"].to_numpy(), [20])["NDCG@20"] for frame in frames]
    return rows(values).with_columns(
        run_directory=pl.format("grid/cells/tiny-sasrec-{}/seed-{}", "adapter", "seed"), **{"HR@20": pl.col("NDCG@20")}
    )


def per_user(adapter: str) -> dict[str, list[float]]:
    """Return NDCG@20 of every user and seed, computed without the code under test."""
    found: dict[str, list[float]] = {}
    for row in pl.read_parquet(f"grid/cells/tiny-sasrec-{adapter}/ranks.parquet").iter_rows(named=True):
        found.setdefault(row["user_id"], []).append(1 / math.log2(1 + row["rank"]) if row["rank"] <= 20 else 0.0)
    return found


def test_p_values_are_scipys_and_holms_are_by_hand(ranked: pl.DataFrame) -> None:
    found = {row["other"]: row for row in comparisons(ranked, 20, NO_RUNS).filter(metric="NDCG@20").iter_rows(named=True)}
    assert list(found) == ["base", "spectran"]
    leader = per_user("alphafuse")
    for other, row in found.items():
        values = per_user(other)
        pairs = np.array([(np.mean(leader[user]), np.mean(values[user])) for user in leader])
        assert row["users"] == len(pairs)
        assert row["difference"] == pytest.approx(pairs[:, 0].mean() - pairs[:, 1].mean())
        assert row["improvement"] == pytest.approx(pairs[:, 0].mean() / pairs[:, 1].mean() - 1)
        assert row["low"] < row["improvement"] < row["high"]
        expected = permutation_test(
            (pairs[:, 0], pairs[:, 1]),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            n_resamples=10_000,
            rng=1,
        ).pvalue
        assert row["p"] == pytest.approx(expected, abs=0.025)
    low, high = sorted(found.values(), key=lambda row: row["p"])
    assert low["p_holm"] == pytest.approx(2 * low["p"])
    assert high["p_holm"] == pytest.approx(max(high["p"], 2 * low["p"]))
    assert low["other"] == "base"
    assert low["p_holm"] < 0.05 < high["p_holm"]


def test_the_significance_table_marks_what_is_beyond_chance(ranked: pl.DataFrame) -> None:
    table = significance(comparisons(ranked, 20, NO_RUNS))
    (block,) = table.blocks
    assert [row[0].text for row in block.rows] == ["Base (ID only)", "SpecTran"]
    assert [row[4].mark for row in block.rows] == ["best", ""]
    assert block.footer[0][0].text == "AlphaFuse"
    assert table.data.columns[-6:] == ["low", "high", "p", "p_holm", "users", "seeds"]


def test_there_may_be_nothing_to_compare(ranked: pl.DataFrame) -> None:
    assert comparisons(ranked.filter(pl.col("adapter") == "spectran"), 20, NO_RUNS).height == 0


def test_the_leader_is_whoever_is_ahead(ranked: pl.DataFrame) -> None:
    found = comparisons(ranked.filter(pl.col("adapter") != "alphafuse"), 20, NO_RUNS)
    assert found["leader"].unique().to_list() == ["spectran"]
    unusable = ranked.filter(pl.col("adapter") == "alphafuse").with_columns(why=pl.lit("never learned"))
    found = comparisons(ranked, 20, unusable)
    assert found["leader"].unique().to_list() == ["spectran"], "an adapter with unusable runs does not lead"
    assert found["other"].unique(maintain_order=True).to_list() == ["base", "alphafuse"], "it stays in the table"


def test_users_of_other_data_are_refused() -> None:
    """An inner join would leave them out without a word."""
    groups = pl.DataFrame({"user_id": ["a", "a", "b", "b"], "by": ["popularity", "history"] * 2})
    both = pl.DataFrame({"user_id": ["b", "a"], "NDCG@20": [1.0, 0.5]})
    assert with_groups(both, groups, "tiny").height == 4
    for users in (both.head(1), pl.concat([both, both.with_columns(user_id=pl.lit("c"))])):
        with pytest.raises(UserError, match="the cells of tiny hold other users than data/sequences/tiny; `dvc repro grid/dvc"):
            with_groups(users, groups, "tiny")


def test_figures_of_groups_are_the_same_to_the_last_digit_every_time(ranked: pl.DataFrame) -> None:
    """Over five seeds: a standard deviation depends on the order in which it reads them."""
    for file in Path("grid/cells").rglob("ranks.parquet"):
        ranks = pl.read_parquet(file)
        more = [ranks.filter(seed=seed % 2).with_columns(rank=pl.col("rank") * seed, seed=pl.lit(seed)) for seed in (2, 3, 4)]
        pl.concat([ranks, *more]).write_parquet(file)
    first = grouped(ranked, 20)
    assert first["std"].min() > 0
    assert all(grouped(ranked, 20).equals(first) for _ in range(10))


@pytest.mark.usefixtures("project")
def test_the_groups_are_thirds_of_the_interactions_and_quartiles_of_the_histories() -> None:
    """The groups are recomputed from the sequences, item by item."""
    sequences = pl.read_parquet("data/sequences/tiny/sequences.parquet")
    histories = dict(sequences.select("user_id", "items").rows())
    counts = Counter(item for items in histories.values() for item in items[:-2])
    total = sum(counts.values())
    groups = user_groups("tiny")
    assert groups.height == 2 * len(histories)
    for row in groups.filter(by="popularity").iter_rows(named=True):
        popularity = counts[histories[row["user_id"]][-1]]
        above = sum(count for count in counts.values() if count > popularity)
        expected = "head" if above < total / 3 else "mid" if above < 2 * total / 3 else "tail"
        assert row["group"] == (expected if popularity else "tail")
    by_length = groups.filter(by="history")
    for row in by_length.iter_rows(named=True):
        low, _, high = row["group"].partition("–")
        assert int(low) <= len(histories[row["user_id"]]) - 2 <= int(high or low)
    assert 2 <= by_length["group"].n_unique() <= 4
    assert by_length.select("position", "group").unique().height == by_length["group"].n_unique()
