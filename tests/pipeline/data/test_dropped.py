"""What the filters drop: a sentence and the right count for each."""

import polars as pl

from pipeline.data.dropped import dropped
from pipeline.data.interactions import build_sequences
from pipeline.params import Preprocess
from tests.pipeline.data.conftest import START, Load, dense, items_of


def test_everything_that_is_dropped_has_a_sentence_and_the_right_count(load: Load) -> None:
    """Of 4 users with items a to f: e is unknown, f has a short title; one user has two rows; a and b fall to the cap."""
    log = pl.concat(
        [
            dense(["a", "b", "c", "d", "g", "e", "f"]),
            dense(["a"]),  # again
            pl.DataFrame({"user_id": ["lone"] * 2, "item_id": ["a", "b"], "timestamp": [START, START + 9]}),
        ]
    )
    raw = load(log, pl.concat([items_of(*"abcdg"), pl.DataFrame({"item_id": ["f"], "title": ["茶"]})]))
    options = Preprocess(core=3, cap=4)
    notes = {finding.name: finding for finding in dropped(raw, build_sequences(raw, options), options)}
    assert {name: (note.count, note.total) for name, note in notes.items()} == {
        "duplicates": (4, 34),
        "unknown_items": (4, 30),
        "untitled": (4, 30),
        "core": (2, 22),
        "cap": (4, 20),
        "kept": (16, 34),
    }
    assert notes["core"].text == ("Dropped 2 interactions of 1 user with fewer than 3 (core).")
    assert notes["cap"].text == "Dropped 4 interactions older than the last 4 of their user (cap), and 1 item with them."
    assert notes["untitled"].text == ("Dropped 4 interactions with 1 item without a title of at least two characters ('f').")
    assert notes["unknown_items"].warning
    assert not notes["core"].warning
    assert notes["kept"].text == "Kept: 4 users, 4 items, 16 interactions, 47.1 % of the log."


def test_the_share_that_is_kept_is_one_of_all_rows_of_the_log(load: Load) -> None:
    log = pl.concat([dense(["a", "b", "c"]).with_columns(rating=5.0), dense(["d", "e"]).with_columns(rating=1.0)])
    raw = load(log, items_of(*"abcde"), time="s", min_rating=3)
    options = Preprocess(core=3)
    kept = next(note for note in dropped(raw, build_sequences(raw, options), options) if note.name == "kept")
    assert (kept.count, kept.total) == (12, 20)
    assert kept.text.endswith("12 interactions, 60.0 % of the log.")


def test_a_users_single_event_is_dropped_and_said(load: Load) -> None:
    log = pl.concat([dense(["a", "b", "c"]), pl.DataFrame({"user_id": ["one"], "item_id": ["a"], "timestamp": [START]})])
    raw = load(log, items_of(*"abc"))
    options = Preprocess(core=3)
    made = build_sequences(raw, options)
    assert "one" not in made.users["user_id"].to_list()
    assert "1 interaction of 1 user with fewer than 3" in next(
        note.text for note in dropped(raw, made, options) if note.name == "core"
    )


def test_test_items_that_their_users_had_before_are_counted(load: Load) -> None:
    log = pl.concat(
        [
            dense(["a", "b", "c"]),
            pl.DataFrame({"user_id": ["again"] * 3, "item_id": ["a", "b", "a"], "timestamp": [START + i for i in range(3)]}),
        ]
    )
    raw = load(log, items_of(*"abc"))
    options = Preprocess(core=3)
    made = build_sequences(raw, options)
    (note,) = [note for note in dropped(raw, made, options) if note.name == "repeats"]
    assert (note.count, note.total) == (1, made.users.height)
    assert note.text.startswith(f"Of {made.users.height} users with a test item, 1 had it before. A server that shows only new")
    once = load(dense(["a", "b", "c"]), items_of(*"abc"))
    assert "repeats" not in [note.name for note in dropped(once, build_sequences(once, options), options)]


def test_much_order_that_the_times_do_not_tell_is_said(load: Load) -> None:
    """Times to the day: each of 4 users has 3 items a day, so 2 of 3 have the time of the item before."""
    log = dense(list("abcdefghi")).with_columns(pl.col("timestamp") // 3 * 3)
    for ties, says in (
        ("file", "if that is arbitrary, write `ties: shuffled`."),
        ("shuffled", "order is arbitrary (ties: shuffled)."),
    ):
        raw, options = load(log, items_of(*"abcdefghi")), Preprocess(core=3, ties=ties)
        (tied,) = (note for note in dropped(raw, build_sequences(raw, options), options) if note.name == "tied")
        assert tied.text.startswith(
            "At the same time as the item before: 66.7 % of the training items after a user's first, 100.0 % of the test items; "
        )
        assert tied.text.endswith(says)
        assert not tied.warning
        (tied,) = (note for note in dropped(raw, build_sequences(raw, options), options, False) if note.name == "tied")
        assert (tied.warning, tied.count, tied.total) == (True, 4, 4), "the test items, of which the larger share is tied"
        assert tied.text.endswith(f". To keep this order, write `ties: {ties}`, which ends this warning.")
    raw, options = load(dense(list("abc")), items_of(*"abc")), Preprocess(core=3)
    assert not [note for note in dropped(raw, build_sequences(raw, options), options) if note.name == "tied"]


def test_tied_training_items_are_counted_where_their_share_is_the_larger(load: Load) -> None:
    """Of 9 items, 7 are for training: 6 steps, 4 of them within a day."""
    log = dense(list("abcdefghi")).with_columns(pl.Series("timestamp", [START + at for at in (0, 0, 0, 1, 1, 1, 2, 3, 4)] * 4))
    raw, options = load(log, items_of(*"abcdefghi")), Preprocess(core=3)
    (tied,) = (note for note in dropped(raw, build_sequences(raw, options), options, False) if note.name == "tied")
    assert (tied.count, tied.total) == (16, 24)


def titles_said(load: Load, titles: list[str], template: str = "{title}") -> dict[str, str]:
    names = [f"i{number:02}" for number in range(len(titles))]
    items = pl.DataFrame({"item_id": names, "title": titles, "brand": names})
    raw, options = load(dense(names), items), Preprocess(core=3, cap=100)
    notes = dropped(raw, build_sequences(raw, options, template), options)
    return {note.name: note.line() for note in notes if note.name.endswith("_titles")}


def test_titles_that_read_like_missing_values_are_a_warning_if_many(load: Load) -> None:
    distinct = [f"Title {number}" for number in range(16)]
    assert titles_said(load, ["nan", "None", "N/A", "nan", *distinct]) == {
        "missing_titles": "WARNING (20.0 %): Perhaps a missing value that a program has written as text, but taken as a title: "
        "4 items ('N/A', 'None', 'nan'); bring them, or leave them empty, which drops the items."
    }
    assert titles_said(load, ["null", *distinct])["missing_titles"].startswith("Perhaps a missing value")
    assert not titles_said(load, ["Nancy", "None of the above", *distinct])


def test_items_that_share_their_title_are_a_warning_if_many(load: Load) -> None:
    distinct = [f"Title {number}" for number in range(5)]
    titles = ["Shirt", "Shoe", "Shirt", "Shoe", "Shirt", *distinct]
    assert titles_said(load, titles) == {
        "shared_titles": "WARNING (50.0 %): With the same title as another item: 5 items, 3 of them 'Shirt'; adapters cannot "
        "tell them apart by their text."
    }
    assert not titles_said(load, titles, "{title} {brand}")
    assert (
        "With the same text as another item: 5 items, 3 of them 'A Shirt'"
        in titles_said(load, titles, "A {title}")["shared_titles"]
    )
    assert not titles_said(load, ["Shirt", "Shirt", *(f"Title {number}" for number in range(18))]), "10 % are no warning"
