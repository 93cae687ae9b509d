"""From raw records to filtered, capped, ordered sequences."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from common.errors import UserError
from pipeline.data import Ties, in_utc
from pipeline.data.findings import quoted
from pipeline.data.sources import Raw
from pipeline.data.times import DAY, EARLIEST, UNITS, as_date, tomorrow
from pipeline.params import Preprocess
from pipeline.texts import SHORTEST_TITLE, TITLE, check_fields, fill

SHUFFLE = b"ties 0"  # key of the hash that orders ties: another key, another order
KEYS = ["user_id", "item_id", "timestamp"]
LOWEST_CORE = 3  # leave-one-out needs three interactions of a user
COMPLETE = "no row has a user, an item and a time; check which columns hold them (`columns` of the source)"


@dataclass
class Dataset:
    """The artifact: users (user_id, items, timestamps; oldest first), items (item_id, title, text), statistics.

    If the split is by time, users also has the columns of `split_by_time`.
    """

    users: pl.DataFrame
    items: pl.DataFrame
    statistics: dict


def build_sequences(
    raw: Raw, options: Preprocess, template: str = TITLE, where: str = "template", places: Mapping[str, str] | None = None
) -> Dataset:
    """Filter, cap, order and index, exactly in this order; every step is counted.

    Exact duplicates are dropped; items without a title of at least two characters; then users and items with fewer than `core`
    interactions, until none is left. Each user keeps the first `cap` of (time descending, item id ascending); only then are
    sequences ordered by time, and items numbered. Interactions of a user with the same timestamp are ordered by `options.ties`:

    * `item`: by item id. The next item is then always the one with the higher id, which an ID model learns.
    * `shuffled`: by a hash of user and item, after the same cap. It tells nothing, and is the same on every machine.
    * `file`: as in the source, at the cap too, where the later rows are the more recent.

    With a split by time, only the interactions before `valid_from` are capped: otherwise, a user who is active later would keep
    nothing to train on.

    An item's text is `template`, filled with fields of the source; one that the source lacks raises UserError (`where`).
    places: what messages call the dates of the split; `preprocess.valid_from` and `preprocess.test_from` if it is empty.
    """
    check_fields(template, set(raw.items.columns) - {"item_id"}, where)
    # Ids are numbers from here on, in the order of the texts: a table of numbers takes a fraction of the memory.
    log, names = coded(raw.interactions)
    listed = raw.items.unique("item_id", keep="first", maintain_order=True)
    titled = listed.filter(pl.col("title").str.len_chars() >= SHORTEST_TITLE)
    steps = Steps(options.core)
    log = steps.count("raw", log)
    log = steps.count("complete", log.drop_nulls())
    log = steps.count("deduplicated", _without_duplicates(log, options.ties))
    log = log.filter(names["item_id"].is_in(titled["item_id"].implode()).gather(log["item_id"]))
    if not log.height:
        raise UserError(nothing_known(raw.interactions["item_id"], raw.items))
    log = steps.count("titled", log)
    log = steps.count(f"{options.core}-core", _core(log, options.core))
    cut = cut_of(options, raw.time_unit, places)
    log = steps.count(f"last {options.cap}", _capped(log, options, cut))
    # The cap takes whole interactions away from a user, never below `cap`, so no user falls under three.
    items, rows = _items(log, names["item_id"], titled, template)
    users = _users(_ordered(log, options.ties, names), names["user_id"], rows)
    if cut is not None:
        users = split_by_time(users, cut)
        check_targets(users, options, raw.time_unit, places)
    return Dataset(users, items, _statistics(steps.sizes, users, raw, cut))


class Steps:
    """The numbers of users, items and interactions after each filter, in order."""

    def __init__(self, core: int) -> None:
        self.core = core
        self.sizes: dict[str, dict[str, int]] = {}

    def count(self, step: str, log: pl.DataFrame) -> pl.DataFrame:
        """Return the log, which `step` has left. Raises UserError if it is empty."""
        if not log.height:
            before = next(reversed(self.sizes.values()), {"interactions": 0})
            reason = {"raw": "the log has none", "complete": COMPLETE}.get(step, of_core(self.core))
            raise UserError(
                f"no interactions are left after the filter '{step}' ({before['interactions']:,} before it); {reason}"
            )
        self.sizes[step] = {
            "users": log["user_id"].n_unique(),
            "items": log["item_id"].n_unique(),
            "interactions": log.height,
        }
        return log


def of_core(core: int) -> str:
    """What to do where no user and item has enough interactions."""
    needed = f"every user and item needs {core} (core)"
    return f"{needed}, the fewest possible; bring a longer log" if core == LOWEST_CORE else f"{needed}; lower core"


def coded(log: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """Return the log with users and items as their positions in sorted lists of ids, and these lists. A missing id stays missing.

    >>> table, names = coded(pl.DataFrame({"user_id": ["b", None, "a"], "item_id": ["x", "y", "x"], "timestamp": [1, 2, 3]}))
    >>> table["user_id"].to_list(), names["user_id"].to_list()
    ([1, None, 0], ['a', 'b'])
    """
    names = {name: log[name].unique().drop_nulls().sort() for name in ("user_id", "item_id")}
    return log.select(*(log[name].cast(pl.Enum(ids)).to_physical() for name, ids in names.items()), "timestamp"), names


def nothing_known(log: pl.Series, items: pl.DataFrame) -> str:
    """Why no interaction is with an item of the catalogue that has a title, with two ids of each side."""
    known = items["item_id"].drop_nulls()
    if log.is_in(known.implode()).any():
        return "no item of the log has a title of at least two characters in the catalogue; check the source's column of titles"
    advice = "; check which columns hold the ids (`columns` and `item_columns` of the source)"
    return f"no item of the log is in the catalogue: {both_sides(log, known, advice)}"


def both_sides(log: pl.Series, catalogue: pl.Series, otherwise: str = "") -> str:
    """Two ids of the log that the catalogue lacks, two of the catalogue, and what to do where it can be told, or `otherwise`."""
    unknown = log.drop_nulls().unique().sort()
    unknown = unknown.filter(~unknown.is_in(catalogue.implode()))
    text = f"the log has {quoted(unknown)}, the catalogue {quoted(catalogue.unique().sort())}"
    ids = pl.col("id")
    for changed, says in (
        (ids.str.replace(r"\.0$", ""), "end in .0; in pandas, astype('Int64') before writing leaves them whole"),
        (ids.str.strip_chars(), "have spaces around them; remove these"),
        (ids.str.strip_chars_start("0"), "start with zeros that the {other}'s lack; write both as text"),
        (ids.str.normalize("NFC"), "write accents as characters of their own; normalise both to NFC"),
        (ids.str.to_lowercase(), "have capitals that the {other}'s lack; write both alike"),
    ):
        for side, other, theirs, others in (("log", "catalogue", unknown, catalogue), ("catalogue", "log", catalogue, unknown)):
            if theirs.to_frame("id").select(changed).to_series().is_in(others.implode()).any():
                return f"{text}; the {side}'s ids {says.format(other=other)}"
    return text + otherwise


def _capped(log: pl.DataFrame, options: Preprocess, cut: dict[str, int] | None) -> pl.DataFrame:
    """Keep each user's most recent `cap` interactions; with a split by time, those and all from `valid_from` on."""
    by_row = options.ties == "file"
    log = log.sort(["user_id", "timestamp", "row" if by_row else "item_id"], descending=[False, True, by_row])
    if cut is None:
        return log.group_by("user_id", maintain_order=True).head(options.cap)
    later = pl.col("timestamp") >= cut["valid_from"]
    return log.filter(later | (pl.int_range(pl.len()).over("user_id", later) < options.cap))


def _items(log: pl.DataFrame, names: pl.Series, titled: pl.DataFrame, template: str) -> tuple[pl.DataFrame, pl.Series]:
    """Return the items of the log (item_id, title, text), by id, and the row of each number in the log.

    names: the item ids that the numbers in the log stand for; titled: the catalogue. Raises UserError if there is only one item.
    """
    kept = log["item_id"].unique().sort()
    if kept.len() == 1:
        raise UserError(f"only one item is left, {names[kept[0]]!r}, and a ranking needs two; check catalogue and item_id")
    items = titled.join(names.gather(kept).to_frame(), on="item_id", how="semi").sort("item_id")
    texts = [fill(template, item) for item in items.iter_rows(named=True)]
    rows = pl.zeros(names.len(), dtype=pl.Int32, eager=True).scatter(kept, range(kept.len()))
    # The other fields stay out: embeddings depend on this file, and nothing but a text should make them stale.
    return items.select("item_id", "title", text=pl.Series(texts, dtype=pl.String)), rows


def _users(log: pl.DataFrame, names: pl.Series, rows: pl.Series) -> pl.DataFrame:
    """Return the users (user_id, items, timestamps) of an ordered log. names: their ids; rows: from `_items`."""
    users = (
        log.select("user_id", "timestamp", item=rows.gather(log["item_id"]))
        .group_by("user_id", maintain_order=True)
        .agg(items=pl.col("item"), timestamps=pl.col("timestamp"))
    )
    return users.with_columns(names.gather(users["user_id"]))


def _statistics(steps: dict[str, dict[str, int]], users: pl.DataFrame, raw: Raw, cut: dict[str, int] | None) -> dict[str, object]:
    """Return the dataset's size and density, the size after each filter, the shares of ties, and the counts of the source."""
    size = next(reversed(steps.values()))
    return {
        **size,
        "density": size["interactions"] / (size["users"] * size["items"]),
        "interactions_per_user": size["interactions"] / size["users"],
        "duplicate_interactions": steps["complete"]["interactions"] - steps["deduplicated"]["interactions"],
        "tied": tied_shares(users),
        **({"split": cut | split_counts(users)} if cut else {}),
        **raw.counts,
        **({"time_unit": raw.time_unit} if raw.time_unit != "s" else {}),
        "steps": steps,
    }


def _without_duplicates(table: pl.DataFrame, ties: Ties) -> pl.DataFrame:
    """Drop repeated (user, item, time); with `file`, keep the first of them and number the source's rows in a column `row`."""
    rows = table.with_row_index("row").sort([*KEYS, "row"])  # a table of hashes would take several times the memory
    repeated = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in KEYS)
    return rows.filter(~repeated.fill_null(False)).drop([] if ties == "file" else ["row"])


def _ordered(table: pl.DataFrame, ties: Ties, names: dict[str, pl.Series]) -> pl.DataFrame:
    """Interactions by user and time, equal times as `ties` says. table, names: from `coded`."""
    if ties == "file":
        return table.sort(["user_id", "timestamp", "row"])
    table = table.sort(["user_id", "timestamp", "item_id"])
    if ties == "item":
        return table
    day = table.select(pl.struct("user_id", "timestamp").rle_id().alias("day"))["day"]
    alone = day.is_unique()
    digests = np.zeros(table.height, dtype=np.uint64)
    some = (~alone).to_numpy()
    tied = table.filter(~alone)
    texts = (names[name].gather(tied[name]) for name in ("user_id", "item_id"))
    digests[some] = [shuffle_key(user, item) for user, item in zip(*texts, strict=True)]
    return table.with_columns(digest=pl.Series(digests)).sort(["user_id", "timestamp", "digest", "item_id"]).drop("digest")


def shuffle_key(user_id: str, item_id: str) -> int:
    """Return the 64-bit hash that orders a user's items of the same time, lowest first, if `ties` is `shuffled`."""
    return int.from_bytes(hashlib.blake2b(f"{user_id}\t{item_id}".encode(), digest_size=8, key=SHUFFLE).digest())


def cut_of(options: Preprocess, unit: str, places: Mapping[str, str] | None = None) -> dict[str, int] | None:
    """Return the times at which validation and test begin, in the log's unit; None for leave-one-out.

    Raises UserError if one is missing, or if they are not in this order.
    """
    if options.split != "global":
        return None
    named, cut = _named(places), {}
    for name in ("valid_from", "test_from"):
        value = getattr(options, name)
        if value is None:
            raise UserError(f"{named[name]} is missing, which split global needs")
        if isinstance(value, str):
            since = in_utc(value) - datetime(1970, 1, 1, tzinfo=UTC)
            value = (since.days * DAY + since.seconds) * UNITS[unit] + since.microseconds * UNITS[unit] // UNITS["us"]
        else:
            value = in_unit(value, unit)
        cut[name] = value
    if cut["valid_from"] >= cut["test_from"]:
        raise UserError(f"{named['valid_from']}, {options.valid_from}, is not before {named['test_from']}, {options.test_from}")
    return cut


def _named(places: Mapping[str, str] | None) -> dict[str, str]:
    """What messages call the two dates."""
    return {name: (places or {}).get(name, f"preprocess.{name}") for name in ("valid_from", "test_from")}


def in_unit(number: int, unit: str) -> int:
    """A point in time that somebody has written as a number, in a log's `unit`, rounded up.

    Its own unit is the one that puts it between 1990 and tomorrow, as a log's is recognised; the log's, if none does.

    >>> in_unit(1_500_000_000_001, "s"), in_unit(1_500_000_000, "ms"), in_unit(7, "s")
    (1500000001, 1500000000000, 7)
    """
    earliest, latest = int(EARLIEST.timestamp()), int(tomorrow())
    own = next((name for name, size in UNITS.items() if earliest * size <= number <= latest * size), unit)
    return -(-number * UNITS[unit] // UNITS[own])


def split_by_time(users: pl.DataFrame, cut: dict[str, int]) -> pl.DataFrame:
    """Add the split of every user: `train`, `valid` and `test`, as `pipeline.training.sequences.read_sequences` describes them.

    users: items and timestamps, oldest first; cut: `valid_from` and `test_from`. Items before `valid_from` are for training. The
    validation target is the first item in [valid_from, test_from), the test target the first one from `test_from` on. A target
    with nothing before it is none, because there is no history to recommend from.
    """
    train, until_test = (
        pl.col("timestamps").list.eval(pl.element() < cut[name]).list.sum().cast(pl.Int64) for name in ("valid_from", "test_from")
    )
    return users.with_columns(
        train=train,
        valid=pl.when((train > 0) & (train < until_test)).then(train),
        test=pl.when((until_test > 0) & (until_test < pl.col("timestamps").list.len())).then(until_test),
    )


def split_counts(users: pl.DataFrame) -> dict[str, int]:
    """How many users a model can learn from, which needs two training items, and how many have a target of each kind."""
    return {
        "training_users": int((users["train"] > 1).sum()),
        "validation_users": users.height - users["valid"].null_count(),
        "test_users": users.height - users["test"].null_count(),
    }


def check_targets(users: pl.DataFrame, options: Preprocess, unit: str, places: Mapping[str, str] | None = None) -> None:
    """Raise UserError if the dates of a split by time leave nothing to train on, to validate or to test."""
    counts, named = split_counts(users), _named(places)
    valid, test = f"{named['valid_from']}, {options.valid_from}", f"{named['test_from']}, {options.test_from}"
    for name, lacking in (
        ("training_users", f"no user has two interactions before {valid}"),
        ("validation_users", f"no user has an interaction from {valid}, until {test}, and one before it"),
        ("test_users", f"no user has an interaction from {test}, on and one before it"),
    ):
        if not counts[name]:
            flat = users["timestamps"].explode()
            span = " to ".join(as_date(int(end), unit) for end in (flat.min(), flat.max()))  # type: ignore[arg-type]
            raise UserError(f"{lacking}; the interactions that are left after all filters are from {span}")


def tied_shares(users: pl.DataFrame) -> dict[str, float]:
    """Shares of items that have the timestamp of the item before them, and so are ordered by `preprocess.ties` alone.

    users: timestamps, a list per user, oldest first, and the columns of `split_by_time`; without these, the split is
    leave-one-out. `steps`: of the steps from one training item to the next; `validation` and `test`: of the targets.
    """
    length = users["timestamps"].list.len().to_numpy().astype(np.int64)
    starts = length.cumsum() - length
    flat = users["timestamps"].explode().to_numpy()
    same = np.concatenate([[False], flat[1:] == flat[:-1]])
    same[starts] = False  # a user's first item has none before it
    train, valid, test = length - 2, starts + length - 2, starts + length - 1
    if "test" in users.columns:
        train = users["train"].to_numpy()
        valid, test = ((pl.Series(starts) + users[name]).drop_nulls().to_numpy() for name in ("valid", "test"))
    until = np.concatenate([[0], same.cumsum()])
    steps = np.maximum(train - 1, 0).sum()
    return {
        "steps": float((until[starts + train] - until[starts]).sum() / max(1, steps)),
        "validation": float(same[valid].mean()),
        "test": float(same[test].mean()),
    }


def _core(table: pl.DataFrame, core: int) -> pl.DataFrame:
    """Drop users and items with fewer than `core` interactions until all have as many."""
    while True:
        kept = table.filter((pl.len().over("user_id") >= core) & (pl.len().over("item_id") >= core))
        if kept.height == table.height:
            return kept
        table = kept
