"""Test items that their users had before. A server that shows new items only never shows them."""

import polars as pl


def repeated(users: pl.DataFrame) -> pl.DataFrame:
    """Return the `user_id` of the users whose test item is among the items before it.

    users: user_id; items, oldest first; test, the position of the test item, null for none. Without `test`, it is the last item.
    """
    test = pl.col("test") if "test" in users.columns else pl.col("items").list.len().cast(pl.Int64) - 1
    had = pl.col("items").list.head(test).list.contains(pl.col("items").list.get(test))
    return users.filter(test.is_not_null() & had).select("user_id")
