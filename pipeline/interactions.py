"""From raw records to filtered, capped, ordered sequences."""

import ast
import gzip
import html
import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from tqdm import tqdm

from models.errors import UserError
from pipeline.download import amazon2014_files
from pipeline.params import Amazon2014, Preprocess, Source

ASIN = re.compile(rb"""['"]asin['"]:\s*['"]([^'"]+)['"]""")
MALFORMED_SHARE = 0.01  # of the metadata lines that are needed


@dataclass
class Raw:
    """Interactions (user_id, item_id, timestamp in s), items (item_id, title), and counts worth recording."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    counts: dict[str, int]


def read_raw(source: Source, directory: Path) -> Raw:
    """Read what the download stage left in `directory`."""
    if not isinstance(source, Amazon2014):
        return Raw(pl.read_parquet(directory / "interactions.parquet"), pl.read_parquet(directory / "items.parquet"), {})
    reviews, metadata = (directory / file for file in amazon2014_files(source.name))
    interactions = read_reviews(reviews)
    items, malformed = read_titles(metadata, set(interactions["item_id"].unique()))
    return Raw(interactions, items, {"malformed_metadata_lines": malformed})


def read_reviews(path: Path) -> pl.DataFrame:
    """Reviews, one JSON object a line, as user_id, item_id, timestamp."""
    schema = {"reviewerID": pl.String, "asin": pl.String, "unixReviewTime": pl.Int64}
    with gzip.open(path) as file:
        try:
            table = pl.read_ndjson(file.read(), schema=schema)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{path.name}: not one JSON object a line ({str(error).splitlines()[0]})") from None
    table = table.rename({"reviewerID": "user_id", "asin": "item_id", "unixReviewTime": "timestamp"})
    missing = table.null_count().row(0)
    if any(missing):
        raise UserError(f"{path.name}: {max(missing)} reviews lack one of {', '.join(schema)}; the file is not a 2014 review file")
    return table


def read_titles(path: Path, needed: set[str]) -> tuple[pl.DataFrame, int]:
    """Titles of the needed items, and the number of their lines that are no Python literal.

    The official files list a whole category, one Python literal a line: only needed lines are parsed, by `literal_eval`, which
    runs nothing. A line without an ASIN counts as malformed. Raises UserError above a share of MALFORMED_SHARE.
    """
    wanted = {asin.encode() for asin in needed}
    titles: dict[str, str | None] = {}
    malformed = parsed = 0
    with gzip.open(path) as file:
        for line in tqdm(file, unit=" lines", unit_scale=True, desc=f"reading {path.name}", delay=2):
            found = ASIN.search(line)
            if found and found[1] not in wanted:
                continue
            if not line.strip():
                continue
            parsed += 1
            try:
                record = ast.literal_eval(line.decode("utf-8"))
                titles[record["asin"]] = _text(record.get("title"))
            except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
                malformed += 1
    if malformed > MALFORMED_SHARE * max(parsed, 1):
        raise UserError(
            f"{path.name}: {malformed} of {parsed} needed lines are not Python literals with an 'asin' "
            f"(at most {MALFORMED_SHARE:.0%} are skipped); fetch the file again"
        )
    return pl.DataFrame(
        {"item_id": list(titles), "title": list(titles.values())}, schema={"item_id": pl.String, "title": pl.String}
    ), malformed


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


@dataclass
class Sequences:
    """The artifact: users (user_id, items, timestamps; oldest first), items (item_id, title, text), statistics."""

    users: pl.DataFrame
    items: pl.DataFrame
    statistics: dict


def build_sequences(raw: Raw, options: Preprocess) -> Sequences:
    """Filter, cap, order and index, exactly in this order; every step is counted.

    Exact duplicates are dropped; items without a title of at least two characters; then users and items with fewer than `core`
    interactions, until none is left. Each user keeps the first `cap` of (time descending, item id ascending); only then are
    sequences ordered by (time, item id) and items numbered. The order matters: timestamps are days and ties are everywhere.
    """
    steps: dict[str, dict[str, int]] = {}

    def count(step: str, table: pl.DataFrame) -> pl.DataFrame:
        steps[step] = {
            "users": table["user_id"].n_unique(), "items": table["item_id"].n_unique(), "interactions": table.height,
        }
        if not table.height:
            last = next((name for name in reversed(steps) if steps[name]["interactions"]), "raw")
            raise UserError(
                f"no interactions are left after the filter '{step}' ({steps[last]['interactions']:,} before it); "
                "lower preprocess.core or check the source"
            )
        return table

    table = count("raw", raw.interactions.drop_nulls())
    table = count("deduplicated", table.unique())
    titled = raw.items.unique("item_id", keep="first", maintain_order=True).filter(pl.col("title").str.len_chars() > 1)
    table = count("titled", table.join(titled.select("item_id"), on="item_id", how="semi"))
    table = count(f"{options.core}-core", _core(table, options.core))
    table = table.sort(["user_id", "timestamp", "item_id"], descending=[False, True, False])
    table = count(f"last {options.cap}", table.group_by("user_id", maintain_order=True).head(options.cap))
    # The cap takes whole interactions away from a user, never below `cap`, so no user falls under three.
    items = (
        titled.join(table.select("item_id").unique(), on="item_id", how="semi")
        .sort("item_id")
        .with_columns(text=pl.col("title").map_elements(html.unescape, return_dtype=pl.String))
    )
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
        "duplicate_interactions": steps["raw"]["interactions"] - steps["deduplicated"]["interactions"],
        **raw.counts,
        "steps": steps,
    }
    return Sequences(users, items, statistics)


def _core(table: pl.DataFrame, core: int) -> pl.DataFrame:
    """Drop users and items with fewer than `core` interactions until all have as many."""
    while True:
        kept = table.filter((pl.len().over("user_id") >= core) & (pl.len().over("item_id") >= core))
        if kept.height == table.height:
            return kept
        table = kept
