"""Names as the report prints them."""

import polars as pl

from pipeline.report.titles import interval, pair_title, title


def test_a_name_is_the_registrys_or_has_a_capital() -> None:
    assert [title(name) for name in ("llm_esr", "bert4rec", "cross_entropy", "without_encoding", "office")] == [
        "LLM-ESR",
        "BERT4Rec",
        "full softmax",
        "without D",
        "Office",
    ]


def test_a_pair_is_that_of_a_row_or_of_a_frame() -> None:
    row = {"dataset": "office", "backbone": "hstu", "adapter": "base"}
    assert pair_title(row) == pair_title(pl.DataFrame([row, row])) == "Office, HSTU"


def test_an_interval_is_in_percent_with_signs() -> None:
    assert interval({"low": -0.0123, "high": 0.07}) == "-1.2 to +7.0 %"
