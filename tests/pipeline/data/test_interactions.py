"""Filters, cap, order and numbering of interactions, against a slow reference in plain Python."""

import hashlib
import html
import random
from collections import Counter
from itertools import permutations
from typing import Any, get_args

import polars as pl
import pytest
from scipy.stats import chi2

from common.errors import UserError
from pipeline.data import Ties
from pipeline.data.findings import quoted
from pipeline.data.interactions import Dataset, both_sides, build_sequences, shuffle_key
from pipeline.data.sources import Raw
from pipeline.params import Preprocess

Row = tuple[str, str, int]


def raw(rows: list[Row], titles: dict[str, str | None] | None = None, counts: dict[str, int] | None = None) -> Raw:
    titles = {item: f"Title {item}" for _, item, _ in rows} if titles is None else titles
    return Raw(
        pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row"),
        pl.DataFrame(
            {"item_id": list(titles), "title": list(titles.values())}, schema={"item_id": pl.String, "title": pl.String}
        ),
        counts or {},
    )


def by_name(made: Dataset) -> dict[str, list[str]]:
    """Each user's items by their own ids, oldest first."""
    names = made.items["item_id"].to_list()
    return {user: [names[i] for i in items] for user, items in zip(made.users["user_id"], made.users["items"], strict=True)}


def digest(user: str, item: str) -> bytes:
    return hashlib.blake2b(f"{user}\t{item}".encode(), key=b"ties 0", digest_size=8).digest()


def reference(rows: list[Row], titles: dict[str, str | None], core: int, cap: int, ties: Ties = "item") -> dict[str, Any]:
    """Methods, section 12.1 and correction 2, one sentence a statement."""
    kept = set(rows)
    kept = {row for row in kept if len(titles.get(row[1]) or "") > 1}
    while True:
        users, items = Counter(user for user, _, _ in kept), Counter(item for _, item, _ in kept)
        smaller = {row for row in kept if users[row[0]] >= core and items[row[1]] >= core}
        if smaller == kept:
            break
        kept = smaller
    core_size = len(kept)
    sequences = {}
    for user in sorted({user for user, _, _ in kept}):
        mine = [(time, item) for u, item, time in kept if u == user]
        place = {pair: rows.index((user, pair[1], pair[0])) for pair in mine}
        if ties == "file":
            sequences[user] = sorted(mine, key=lambda pair: (pair[0], place[pair]))[-cap:]
        else:
            newest = sorted(mine, key=lambda pair: (-pair[0], pair[1]))[:cap]
            sequences[user] = sorted(newest, key=lambda pair: (pair[0], digest(user, pair[1]) if ties == "shuffled" else pair[1]))
    items_left = sorted({item for pairs in sequences.values() for _, item in pairs})
    return {
        "items": items_left,
        "sequences": {user: [items_left.index(item) for _, item in pairs] for user, pairs in sequences.items()},
        "timestamps": {user: [time for time, _ in pairs] for user, pairs in sequences.items()},
        "core_size": core_size,
    }


def everyone(n_users: int, n_items: int, time: int = 5) -> list[Row]:
    return [(f"u{u}", f"i{i}", time) for u in range(n_users) for i in range(n_items)]


def test_at_the_cap_the_earlier_id_of_a_tie_is_kept_and_order_follows_the_cap() -> None:
    """Six interactions, cap 4: on the oldest kept day there is room for one of b, c, d. The plain tail would keep d."""
    days = {"a": 1, "b": 2, "c": 2, "d": 2, "e": 3, "g": 3, "f": 3}
    rows = [(user, item, day) for user in ("u0", "u1", "u2") for item, day in days.items()]
    random.Random(0).shuffle(rows)
    made = build_sequences(raw(rows), Preprocess(core=3, cap=4, ties="item"))
    assert by_name(made)["u0"] == ["b", "e", "f", "g"]
    assert made.users["timestamps"][0].to_list() == [2, 3, 3, 3]
    assert made.items["item_id"].to_list() == ["b", "e", "f", "g"], "numbered after the cap: a, c and d have no index"
    assert made.users["items"][0].to_list() == [0, 1, 2, 3]


def test_the_earlier_id_of_a_day_comes_first_so_the_later_one_is_the_test_item() -> None:
    rows = [(user, item, 7) for user in ("u0", "u1", "u2") for item in ("z", "B", "a")]
    assert by_name(build_sequences(raw(rows), Preprocess(core=3, ties="item")))["u1"] == ["B", "a", "z"]


def test_shuffled_ties_keep_what_the_cap_keeps_and_the_order_of_days() -> None:
    """Cap 4 keeps b of day 2, as by item id, and all of day 3; a user's order of e, f and g is its own."""
    days = {"a": 1, "b": 2, "c": 2, "d": 2, "e": 3, "g": 3, "f": 3}
    rows = [(f"u{u}", item, day) for u in range(60) for item, day in days.items()]
    made = build_sequences(raw(rows), Preprocess(core=3, cap=4, ties="shuffled"))
    sequences = by_name(made)
    assert all(items[0] == "b" and sorted(items[1:]) == ["e", "f", "g"] for items in sequences.values())
    assert {tuple(items[1:]) for items in sequences.values()} == set(permutations("efg"))
    assert made.items.equals(build_sequences(raw(rows), Preprocess(core=3, cap=4, ties="item")).items)


def test_shuffling_depends_on_user_and_item_alone_and_is_known() -> None:
    """Fixed: the same order on every machine and in every version of every library."""
    assert shuffle_key("A2CX7LUOHB2NDG", "B00005N7P0") == 4_121_238_801_609_252_339
    assert shuffle_key("u", "é") == int.from_bytes(digest("u", "é"), "big")


def test_shuffling_is_uniform() -> None:
    """Of four tied items every one is the last of a quarter of the users, and every order as frequent: chi-square, 23 degrees."""
    users = 4800
    orders = Counter(tuple(sorted("wxyz", key=lambda item: shuffle_key(f"user{u}", item))) for u in range(users))
    expected = users / 24
    assert sum((orders[order] - expected) ** 2 / expected for order in permutations("wxyz")) < chi2.ppf(0.999, 23)
    later = sum(shuffle_key(f"user{u}", "a") < shuffle_key(f"user{u}", "b") for u in range(users))
    assert later == pytest.approx(users / 2, abs=3.3 * (users / 4) ** 0.5), "the higher id tells nothing"


def test_ties_of_a_file_keep_its_order_and_at_the_cap_its_later_rows() -> None:
    """Eight rows on three days, not in order of time; cap 5 leaves room for two of day 2's three, which are its later rows."""
    log = [("q", 3), ("m", 2), ("z", 1), ("b", 3), ("k", 2), ("a", 2), ("q", 3), ("c", 3)]
    rows = [(f"u{u}", item, day) for u in range(3) for item, day in log]
    made = build_sequences(raw(rows), Preprocess(core=3, cap=5, ties="file"))
    assert by_name(made)["u1"] == ["k", "a", "q", "b", "c"], "q stands where the first of its two equal rows does"
    assert made.statistics["duplicate_interactions"] == 3


def test_shares_of_ties_by_hand() -> None:
    """u: two of three training steps, and the test item. v: validation and test. That v ends on the day w starts is no tie."""
    times = {"u": [1, 1, 2, 2, 3, 3], "v": [8, 9, 9, 9], "w": [9, 10, 11]}
    rows = [(user, f"i{place}", time) for user, days in times.items() for place, time in enumerate(days)]
    rows += [(f"x{x}", f"i{place}", x + 100 * place) for x in range(5) for place in range(6)]
    made = build_sequences(raw(rows), Preprocess(core=3))
    assert made.users["user_id"].to_list() == ["u", "v", "w", *(f"x{x}" for x in range(5))]
    assert made.statistics["tied"] == {"steps": 2 / (3 + 1 + 0 + 5 * 3), "validation": 1 / 8, "test": 2 / 8}


def test_without_a_single_step_no_share_of_steps_is_tied() -> None:
    assert build_sequences(raw(everyone(3, 3)), Preprocess(core=3)).statistics["tied"] == {"steps": 0, "validation": 1, "test": 1}


def test_items_that_only_the_cap_removes_have_counted_for_the_core() -> None:
    """The cap comes after the core and no second core follows."""
    rows = everyone(3, 6) + [(f"u{u}", "rare", 1) for u in range(3)]
    made = build_sequences(raw(rows), Preprocess(core=3, cap=4))
    assert made.statistics["steps"]["3-core"] == {"users": 3, "items": 7, "interactions": 21}
    assert made.statistics["steps"]["last 4"] == {"users": 3, "items": 4, "interactions": 12}


@pytest.mark.parametrize("ties", get_args(Ties))
@pytest.mark.parametrize("seed", range(40))
def test_against_a_slow_reference_on_random_data_full_of_ties(seed: int, ties: Ties) -> None:
    rng = random.Random(seed)
    n_users, n_items, days = rng.randint(4, 25), rng.randint(4, 25), rng.choice([1, 2, 5, 50])
    rows = [
        (f"u{rng.randrange(n_users)}", rng.choice("Ai") + str(rng.randrange(n_items)), rng.randrange(days))
        for _ in range(rng.randint(100, 900))
    ]
    titles: dict[str, str | None] = {item: f"Title {item}" for _, item, _ in rows}
    for item in rng.sample(sorted(titles), k=len(titles) // 5):
        titles[item] = rng.choice([None, "", "x", "é", "ok"])
    for item in rng.sample(sorted(titles), k=len(titles) // 10):
        del titles[item]
    core, cap = rng.choice([3, 4, 5]), rng.choice([4, 6, 13])
    expected = reference(rows, titles, core, cap, ties)
    options = Preprocess(core=core, cap=cap, ties=ties)
    if not expected["items"]:
        with pytest.raises(UserError, match="no interactions are left"):
            build_sequences(raw(rows, titles), options)
        return
    made = build_sequences(raw(rows, titles), options)
    assert made.items["item_id"].to_list() == expected["items"]
    assert made.users["user_id"].to_list() == list(expected["sequences"])
    assert dict(zip(made.users["user_id"], made.users["items"].to_list(), strict=True)) == expected["sequences"]
    assert dict(zip(made.users["user_id"], made.users["timestamps"].to_list(), strict=True)) == expected["timestamps"]
    assert made.statistics["steps"][f"{core}-core"]["interactions"] == expected["core_size"]
    assert made.statistics["duplicate_interactions"] == len(rows) - len(set(rows))
    assert made.users["items"].list.len().min() >= 3, "leave-one-out needs three"


def test_the_reference_test_is_not_all_empty() -> None:
    """Guards the test above: most of its seeds must leave something."""
    rng = random.Random(0)
    rows = [(f"u{rng.randrange(9)}", f"i{rng.randrange(9)}", rng.randrange(3)) for _ in range(300)]
    assert len(reference(rows, {f"i{i}": "title" for i in range(9)}, 3, 4)["items"]) > 4


@pytest.mark.parametrize("ties", ["item", "shuffled"])
def test_the_order_of_the_input_rows_changes_nothing(ties: Ties) -> None:
    rng = random.Random(1)
    rows = [(f"u{rng.randrange(20)}", f"i{rng.randrange(20)}", rng.randrange(3)) for _ in range(600)]
    first = build_sequences(raw(rows), Preprocess(ties=ties))
    rng.shuffle(rows)
    second = build_sequences(raw(rows), Preprocess(ties=ties))
    assert first.users.equals(second.users)
    assert first.items.equals(second.items)
    assert first.statistics == second.statistics


def test_exact_duplicates_are_dropped_and_counted_others_kept() -> None:
    rows = [*everyone(3, 3), ("u0", "i0", 5), ("u0", "i0", 5), ("u0", "i0", 6)]
    made = build_sequences(raw(rows), Preprocess(core=3, ties="item"))
    assert made.statistics["duplicate_interactions"] == 2
    assert by_name(made)["u0"] == ["i0", "i1", "i2", "i0"], "the same item on another day is another interaction"


def test_statistics_count_every_filter() -> None:
    titles = {f"i{i}": f"Title {i}" for i in range(7)} | {"short": "x", "untitled": None}
    rows = [
        *everyone(4, 7),
        ("u0", "i0", 5),
        ("u0", "short", 5),
        ("u1", "untitled", 5),
        ("u1", "unknown", 5),
        ("lonely", "i0", 5),
    ]
    statistics = build_sequences(raw(rows, titles, {"malformed_metadata_lines": 2}), Preprocess(core=3, cap=5)).statistics
    assert statistics["steps"] == {
        "raw": {"users": 5, "items": 10, "interactions": 33},
        "complete": {"users": 5, "items": 10, "interactions": 33},
        "deduplicated": {"users": 5, "items": 10, "interactions": 32},
        "titled": {"users": 5, "items": 7, "interactions": 29},
        "3-core": {"users": 4, "items": 7, "interactions": 28},
        "last 5": {"users": 4, "items": 5, "interactions": 20},
    }
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (4, 5, 20)
    assert statistics["density"] == 1.0
    assert statistics["interactions_per_user"] == 5.0
    assert statistics["duplicate_interactions"] == 1
    assert statistics["malformed_metadata_lines"] == 2


def test_the_first_title_of_an_item_counts() -> None:
    interactions = raw(everyone(3, 3)).interactions
    items = pl.DataFrame({"item_id": ["i0", "i1", "i2", "i0"], "title": ["first", "b2", "c3", "second"]})
    assert build_sequences(Raw(interactions, items), Preprocess(core=3)).items["title"].to_list() == ["first", "b2", "c3"]


def test_texts_are_unescaped_titles() -> None:
    titles = {"i0": "Salt &amp; Pepper", "i1": "caf&eacute; &#x1F600;", "i2": "&amp;amp;"}
    made = build_sequences(raw(everyone(3, 3), titles), Preprocess(core=3)).items
    assert made["title"].to_list() == list(titles.values())
    assert made["text"].to_list() == [html.unescape(title) for title in titles.values()] == ["Salt & Pepper", "café 😀", "&amp;"]


@pytest.mark.parametrize(
    ("rows", "core", "step", "advice"),
    [
        ([], 5, "raw", "the log has none"),
        (everyone(4, 4), 5, "5-core", r"every user and item needs 5 \(core\); lower core"),
        (
            everyone(2, 2),
            3,
            "3-core",
            r"every user and item needs 3 \(core\), the fewest possible; bring a longer log",
        ),
    ],
)
def test_nothing_left_names_the_filter_and_what_to_do_about_it(rows: list[Row], core: int, step: str, advice: str) -> None:
    said = rf"^no interactions are left after the filter '{step}' \({len(rows)} before it\); {advice}$"
    with pytest.raises(UserError, match=said):
        build_sequences(raw(rows), Preprocess(core=core))


def test_a_log_without_times_is_told_to_check_its_columns() -> None:
    """A lower core would bring back nothing."""
    without = raw(everyone(3, 3))
    without.interactions = without.interactions.with_columns(timestamp=pl.lit(None, dtype=pl.Int64))
    with pytest.raises(
        UserError, match=r"after the filter 'complete' \(9 before it\); no row has a user, an item and a time; check"
    ):
        build_sequences(without, Preprocess(core=3))


def test_a_single_item_is_refused() -> None:
    """There is nothing to rank, and no second direction of its text's embedding."""
    rows = [(f"u{u}", "i0", day) for u in range(3) for day in range(3)]
    with pytest.raises(UserError, match=r"^only one item is left, 'i0', and a ranking needs two; check catalogue and item_id$"):
        build_sequences(raw(rows), Preprocess(core=3))


def test_titles_that_are_all_too_short_are_one_line() -> None:
    with pytest.raises(UserError, match="no item of the log has a title of at least two characters in the catalogue"):
        build_sequences(raw(everyone(3, 3), {"i0": "x", "i1": None}), Preprocess(core=3))


def test_texts_are_the_template_filled_with_the_sources_fields() -> None:
    made = raw(everyone(3, 3), {"i0": "Salt &amp; Pepper", "i1": "Mill", "i2": "Pan"})
    made.items = made.items.with_columns(brand=pl.Series(["Alder &quot;A&quot;", None, "Quill"]))
    items = build_sequences(made, Preprocess(core=3), "{title}. {brand}").items
    assert items["text"].to_list() == ['Salt & Pepper. Alder "A"', "Mill", "Pan. Quill"]
    assert items.columns == ["item_id", "title", "text"]


def test_a_field_that_the_source_lacks_is_one_line_with_those_it_has() -> None:
    with pytest.raises(UserError, match=r"^templates.x: the items have no field 'color'; valid: title$"):
        build_sequences(raw(everyone(3, 3), {"i0": "Pan"}), Preprocess(core=3), "{title} {color}", "templates.x")


@pytest.mark.parametrize(
    ("log", "catalogue", "advice"),
    [
        (["8.0", "7.0"], ["8", "9"], "; the log's ids end in .0; in pandas, astype('Int64') before writing leaves them whole"),
        (
            ["8", "7"],
            ["8.0", "9.0"],
            "; the catalogue's ids end in .0; in pandas, astype('Int64') before writing leaves them whole",
        ),
        ([" a", "b "], ["a", "c"], "; the log's ids have spaces around them; remove these"),
        (["08", "07"], ["8", "9"], "; the log's ids start with zeros that the catalogue's lack; write both as text"),
        (["8", "7"], ["08", "09"], "; the catalogue's ids start with zeros that the log's lack; write both as text"),
        (["A1", "B1"], ["a1", "c1"], "; the log's ids have capitals that the catalogue's lack; write both alike"),
        (["o\u0308"], ["\u00f6"], "; the log's ids write accents as characters of their own; normalise both to NFC"),
        (["\u00f6"], ["o\u0308"], "; the catalogue's ids write accents as characters of their own; normalise both to NFC"),
        (["a1", "b1"], ["A1", "C1"], "; the catalogue's ids have capitals that the log's lack; write both alike"),
        (["a", "b"], ["c", "d"], "; look"),
    ],
)
def test_ids_that_differ_in_their_spelling_are_named_with_what_to_do(log: list[str], catalogue: list[str], advice: str) -> None:
    said = both_sides(pl.Series([*log, log[0], None]), pl.Series(catalogue), "; look")
    assert said == f"the log has {quoted(pl.Series(sorted(log)))}, the catalogue {quoted(pl.Series(catalogue))}{advice}"


def test_only_ids_that_the_catalogue_lacks_are_named() -> None:
    assert both_sides(pl.Series(["a", "x"]), pl.Series(["a"])) == "the log has 'x', the catalogue 'a'"


def test_without_a_single_known_item_the_ids_of_both_sides_are_shown() -> None:
    with pytest.raises(UserError) as caught:
        build_sequences(raw(everyone(3, 3), {"A": "Title", "B": "Title"}), Preprocess(core=3))
    assert str(caught.value) == (
        "no item of the log is in the catalogue: the log has 'i0', 'i1', …, the catalogue 'A', 'B'; "
        "check which columns hold the ids (`columns` and `item_columns` of the source)"
    )


def test_a_unit_of_time_other_than_seconds_is_recorded() -> None:
    rows = raw(everyone(3, 3))
    assert "time_unit" not in build_sequences(rows, Preprocess(core=3)).statistics
    rows.time_unit = "ms"
    assert build_sequences(rows, Preprocess(core=3)).statistics["time_unit"] == "ms"


def test_incomplete_interactions_are_dropped_and_counted() -> None:
    rows = raw(everyone(3, 3))
    rows.interactions = pl.concat(
        [rows.interactions, pl.DataFrame([("u0", None, 5), (None, "i0", 5)], rows.interactions.schema, orient="row")]
    )
    steps = build_sequences(rows, Preprocess(core=3)).statistics["steps"]
    assert (steps["raw"]["interactions"], steps["complete"]["interactions"]) == (11, 9)
