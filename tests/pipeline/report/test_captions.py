"""The sentences that say what a figure shows."""

import polars as pl

from pipeline.report import captions
from tests.pipeline.report.values import BOTH, GAINS, NO_RUNS, OFFICE, summary


def test_the_words_of_the_forest_say_whose_intervals_are_above_around_and_below_zero() -> None:
    assert captions.forest(GAINS, NO_RUNS) == (
        "MoRec gains most over Base, +50.0 % (+40.0 to +60.0), the interval is above 0 for MoRec, around 0 for SpecTran, "
        "below 0 for UniSRec."
    )
    cut = pl.DataFrame({"dataset": ["a"], "backbone": ["sasrec"], "adapter": ["morec"], "why": ["not finished"]})
    assert captions.forest(GAINS, cut).startswith("SpecTran gains most over Base"), "nothing is said of runs that were cut short"
    base = cut.with_columns(adapter=pl.lit("base"))
    assert captions.forest(GAINS, base).startswith("Base has runs that support no conclusion")
    losses = GAINS.filter(pl.col("adapter").is_in(["base", "unisrec"]))
    assert captions.forest(losses, NO_RUNS).startswith("No adapter gains over Base; UniSRec has -")


def test_each_pair_has_its_sentence() -> None:
    assert captions.comparison(summary(OFFICE), "HR@20", NO_RUNS) == (
        "The highest HR@20 is SpecTran, 0.3300; the lowest is Base (ID only), 0.1500."
    )
    text = captions.comparison(summary(BOTH), "HR@20", NO_RUNS)
    assert text.startswith("Office, SASRec: the highest HR@20 is SpecTran, 0.3300; ")
    assert " Demo, SASRec: the highest HR@20 is Base (ID only), 0.5000; the lowest is AlphaFuse, 0.2000." in text


def test_groups_name_their_leader_and_spectran_beside_it() -> None:
    both = GAINS.filter(pl.col("adapter") != "base").with_columns(by=pl.lit("popularity"))
    grouped = pl.concat([both.with_columns(group=pl.lit("head")), both.with_columns(group=pl.lit("tail"), gain=-pl.col("gain"))])
    assert captions.groups(grouped, "popularity", NO_RUNS) == (
        "The largest gain over Base is, by group: head MoRec +50 % (SpecTran +10 %); tail UniSRec +50 % (SpecTran -10 %)."
    )


def test_the_highest_by_dim_is_of_runs_that_support_a_conclusion() -> None:
    """A cell that `train.epochs` ended says nothing at its own dim, and takes part at the others."""
    data = pl.concat([summary(OFFICE).with_columns(dim=pl.lit(dim, pl.Int64)) for dim in (16, 64)])
    assert captions.dimensions(data, "HR@20", NO_RUNS) == "The highest HR@20 has, by dim: 16 SpecTran, 64 SpecTran."
    row = {"dataset": "office", "backbone": "sasrec", "adapter": "spectran", "dim": 64, "over": "dims", "why": "not finished"}
    cut_short = pl.DataFrame([row], schema=NO_RUNS.schema)
    assert captions.dimensions(data, "HR@20", cut_short) == "The highest HR@20 has, by dim: 16 SpecTran, 64 AlphaFuse."
