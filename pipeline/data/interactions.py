"""From raw records to filtered, capped, ordered sequences."""

from dataclasses import dataclass

import polars as pl

from common.errors import UserError
from pipeline.data.sources import Raw
from pipeline.params import Preprocess
from pipeline.texts import TITLE, check_fields, fill


@dataclass
class Dataset:
    """The artifact: users (user_id, items, timestamps; oldest first), items (item_id, title, text), statistics."""

    users: pl.DataFrame
    items: pl.DataFrame
    statistics: dict


def build_sequences(raw: Raw, options: Preprocess, template: str = TITLE, where: str = "template") -> Dataset:
    """Filter, cap, order and index, exactly in this order; every step is counted.

    Exact duplicates are dropped; items without a title of at least two characters; then users and items with fewer than `core`
    interactions, until none is left. Each user keeps the first `cap` of (time descending, item id ascending); only then are
    sequences ordered by (time, item id) and items numbered. The order matters: timestamps are days and ties are everywhere.

    An item's text is `template`, filled with the fields that the source has; one that it has not raises UserError (`where`).
    """
    check_fields(template, set(raw.items.columns) - {"item_id"}, where)
    steps: dict[str, dict[str, int]] = {}

    def count(step: str, table: pl.DataFrame) -> pl.DataFrame:
        steps[step] = {
            "users": table["user_id"].n_unique(),
            "items": table["item_id"].n_unique(),
            "interactions": table.height,
        }
        if not table.height:
            last = next((name for name in reversed(steps) if steps[name]["interactions"]), "raw")
            raise UserError(
                f"no interactions are left after the filter '{step}' ({steps[last]['interactions']:,} before it); "
                "lower preprocess.core or check the source"
            )
        return table

    table = count("raw", raw.interactions)
    table = count("complete", table.drop_nulls())
    table = count("deduplicated", table.unique())
    titled = raw.items.unique("item_id", keep="first", maintain_order=True).filter(pl.col("title").str.len_chars() > 1)
    table = count("titled", table.join(titled.select("item_id"), on="item_id", how="semi"))
    table = count(f"{options.core}-core", _core(table, options.core))
    table = table.sort(["user_id", "timestamp", "item_id"], descending=[False, True, False])
    table = count(f"last {options.cap}", table.group_by("user_id", maintain_order=True).head(options.cap))
    # The cap takes whole interactions away from a user, never below `cap`, so no user falls under three.
    items = titled.join(table.select("item_id").unique(), on="item_id", how="semi").sort("item_id")
    texts = [fill(template, item) for item in items.iter_rows(named=True)]
    # The other fields stay out: embeddings depend on this file, and nothing but a text should make them stale.
    items = items.select("item_id", "title", text=pl.Series(texts, dtype=pl.String))
    index = items.select("item_id").with_row_index("item").with_columns(pl.col("item").cast(pl.Int32))
    users = (
        table.join(index, on="item_id")
        .sort(["user_id", "timestamp", "item_id"])
        .group_by("user_id", maintain_order=True)
        .agg(items=pl.col("item"), timestamps=pl.col("timestamp"))
    )
    size = steps[f"last {options.cap}"]
    statistics = {
        **size,
        "density": size["interactions"] / (size["users"] * size["items"]),
        "interactions_per_user": size["interactions"] / size["users"],
        "duplicate_interactions": steps["complete"]["interactions"] - steps["deduplicated"]["interactions"],
        **raw.counts,
        "steps": steps,
    }
    return Dataset(users, items, statistics)


def _core(table: pl.DataFrame, core: int) -> pl.DataFrame:
    """Drop users and items with fewer than `core` interactions until all have as many."""
    while True:
        kept = table.filter((pl.len().over("user_id") >= core) & (pl.len().over("item_id") >= core))
        if kept.height == table.height:
            return kept
        table = kept
