"""What would change the verdict: users, the other protocol, another split."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.report.candidate import Candidate
from pipeline.report.changes import more_users, other_protocol, other_split
from tests.sign import sign


def test_how_many_users_would_tell_two_adapters_apart() -> None:
    """The half-width of the interval, 4 %, is twice the gain: four times the users halve it."""
    row = {"other": "base", "improvement": 0.02, "low": -0.02, "high": 0.06, "p_holm": 0.3, "holm_factor": 1}
    assert more_users("SpecTran", row, 1000) == [
        "More users: if SpecTran stays 2.0 % above Base (ID only), about 4,000 users would tell them apart with a chance of "
        "one half; these are 1,000."
    ]
    (said,) = more_users("SpecTran", row | {"improvement": 0.0001}, 1000)
    assert said == "More users: not even 100 times as many would tell SpecTran and Base (ID only) apart."
    for change in ({"improvement": 0.0}, {"improvement": -0.01}, {"low": float("nan")}, {"p_holm": 0.01}):
        assert more_users("SpecTran", row | change, 1000) == []
    # With Holm's factor 9, the interval of a test at 0.05 / 9 is 2.77 / 1.96 as wide, which takes twice as many users.
    (said,) = more_users("SpecTran", row | {"p_holm": 1.0, "holm_factor": 9}, 1000)
    assert "about 8,006 users" in said
    assert more_users("SpecTran", row | {"low": 0.001, "high": 0.039}, 1000) == [], "enough users, and yet a tie: it says nothing"


def test_another_leader_under_the_other_protocol_is_named(tmp_path: Path) -> None:
    """Base has ranks 1 and 3, without history 3 and 3; SpecTran 3 and 3, without history 1 and 2."""
    candidates = {}
    for adapter, ranks, without in (("base", [1, 3], [3, 3]), ("spectran", [3, 3], [1, 2])):
        folder = tmp_path / adapter
        folder.mkdir()
        frame = pl.DataFrame({"user_id": ["a", "b"], "rank": ranks, "rank_without_history": without})
        frame.write_parquet(folder / "ranks.parquet")
        candidates[adapter] = Candidate(pl.DataFrame({"adapter": [adapter], "run_directory": [str(folder / "seed-0")]}))
    nobody = pl.DataFrame(schema={"user_id": pl.String})
    (said,) = other_protocol(candidates["base"], candidates, nobody, exclude_history=False, cutoff=20)
    assert "(`evaluate.exclude_history=true`), SpecTran is best instead of Base (ID only), with NDCG@20 0.8155." in said
    assert (1 + 1 / np.log2(3)) / 2 == pytest.approx(0.8155, abs=1e-4)
    # The first user had the test item before: a shop that shows new items only never shows it.
    had = pl.DataFrame({"user_id": ["a"]})
    (said,) = other_protocol(candidates["base"], candidates, had, exclude_history=False, cutoff=20)
    assert "with NDCG@20 0.6309 (over the 1 user to whom the test item is new)." in said
    assert 1 / np.log2(3) == pytest.approx(0.6309, abs=1e-4)
    (said,) = other_protocol(candidates["base"], candidates, pl.DataFrame({"user_id": ["a", "b"]}), False, 20)
    assert said.startswith("Another protocol: none, for every user had the test item before")
    (said,) = other_protocol(candidates["base"], candidates, had, exclude_history=True, cutoff=20)
    assert "(`evaluate.exclude_history=false`), Base (ID only) is best too" in said
    frame.drop("rank_without_history").write_parquet(folder / "ranks.parquet")
    assert other_protocol(candidates["base"], candidates, nobody, exclude_history=False, cutoff=20) == []


def test_the_order_under_another_published_split_is_compared_by_pairs(project: Path) -> None:
    """0.3, 0.2, 0.1 here; 0.1, 0.2, 0.15 under the other split: two of three pairs of adapters change their order."""
    cell = {"dataset": "tiny", "backbone": "sasrec", "encoder": "random", "dim": 16, "seed": 0, "exclude_history": False}
    here = {"base": 0.3, "morec": 0.2, "spectran": 0.1}
    candidates = {name: Candidate(pl.DataFrame([cell | {"adapter": name, "NDCG@20": value}])) for name, value in here.items()}
    assert other_split(candidates["base"], candidates, 20) == [], "nothing is published"
    about = {"variant": None, "loss": "info_nce", "over": "seeds", "fingerprint": "f0", "commit": "c0", "torch": "2"}
    there = {"base": 0.1, "morec": 0.2, "spectran": 0.15}
    split = "by time: validation from 2013-10-01, test from 2013-12-01"
    folders = [("cut", {"split": split}), ("same", {"split": "leave-one-out"}), ("old", {}), ("wide", {"dim": 32})]
    for name, changes in [*folders, ("new", {"split": split, "exclude_history": True})]:
        folder = project / "docs/results" / name
        folder.mkdir(parents=True)
        rows = [cell | about | {"adapter": adapter, "NDCG@20": value} | changes for adapter, value in there.items()]
        pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / "runs.csv")
        sign(folder)
    (said,) = other_split(candidates["base"], candidates, 20)
    assert said == (
        f"Another split, {split} (docs/results/cut): MoRec is best instead of Base (ID only), with NDCG@20 0.2000; 2 of 3 pairs "
        "of adapters change their order."
    )
