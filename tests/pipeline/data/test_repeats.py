"""Test items that their users had before."""

import polars as pl

from pipeline.data.repeats import repeated

USERS = pl.DataFrame({"user_id": ["new", "again", "later", "none"], "items": [[1, 2, 3], [1, 2, 1], [4, 5, 6, 4], [7, 7, 7]]})


def test_the_last_item_counts_where_nothing_else_is_said() -> None:
    assert repeated(USERS)["user_id"].to_list() == ["again", "later", "none"]


def test_by_time_only_the_items_before_the_test_item_count() -> None:
    """The third user's item 4 comes again after the test; the last user has no test item."""
    users = USERS.with_columns(test=pl.Series([2, 2, 2, None], dtype=pl.Int64))
    assert repeated(users)["user_id"].to_list() == ["again"]
    assert repeated(users.clear()).is_empty()
