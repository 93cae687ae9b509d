"""The leaderboard: sorted, with the gain over Base, and plain on a terminal."""

import polars as pl

from pipeline.report.leaderboard import CUT, leaderboard, plain
from pipeline.report.results import ResultSet
from tests.pipeline.report.values import GAINS, NO_RUNS, NOTHING, Cell, summary

VALUES: dict[Cell, list[float]] = {("a", "sasrec", name): [0.4] for name in ("morec", "spectran", "base", "unisrec")}
COMPARED = pl.DataFrame(
    {
        "dataset": ["a"] * 3,
        "backbone": ["sasrec"] * 3,
        "metric": ["NDCG@20"] * 3,
        "leader": ["spectran"] * 3,
        "other": ["morec", "base", "unisrec"],
        "p_holm": [0.2, 0.03, 0.01],
    }
)
CUT_SHORT = pl.DataFrame({"dataset": ["a"], "backbone": ["sasrec"], "adapter": ["morec"], "why": ["not finished"]})


def test_rows_are_sorted_and_the_leader_is_bold_though_a_run_that_was_cut_short_is_above_it() -> None:
    result_set = ResultSet(None, summary(VALUES), COMPARED, COMPARED, CUT_SHORT)
    table = leaderboard(GAINS, result_set, "NDCG@20", "HR@20")
    (block,) = table.blocks
    assert block.sorted_by == 1
    assert [[entry.text for entry in row] for row in block.rows] == [
        [f"MoRec {CUT}", "0.3000", "+50.0 %", "+40.0 to +60.0 %", "0.4000", "–"],
        ["SpecTran", "0.2200", "+10.0 %", "-10.0 to +30.0 %", "0.4000", "–"],
        ["Base (ID only)", "0.2000", "–", "–", "0.4000", "0.0300"],
        ["UniSRec", "0.1000", "-50.0 %", "-60.0 to -40.0 %", "0.4000", "0.0100"],
    ]
    assert [row[1].mark for row in block.rows] == ["", "best", "", ""]
    assert any("nothing is concluded" in note for note in table.notes)


def test_one_user_is_one_user() -> None:
    one = leaderboard(
        GAINS.with_columns(users=1), ResultSet(None, summary(VALUES), NOTHING, NOTHING, NO_RUNS), "NDCG@20", "HR@20"
    )
    assert one.blocks[0].heading == "A, SASRec (1 user, 1 seed)"


def test_a_terminal_sees_aligned_words_and_numbers() -> None:
    text = plain(leaderboard(GAINS, ResultSet(None, summary(VALUES), NOTHING, NOTHING, NO_RUNS), "NDCG@20", "HR@20"))
    heading, _, header, *rows = text.splitlines()
    assert heading == "A, SASRec (100 users, 1 seed)"
    assert header.split("  ")[0] == "Adapter"
    assert {len(line) for line in (header, *rows)} == {len(header)}
    assert not set("*<|") & set(text)
