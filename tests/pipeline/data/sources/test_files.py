"""A user's own files, and the built-in dataset."""

import datetime
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.errors import UserError
from pipeline.data.findings import Finding
from pipeline.data.interactions import build_sequences
from pipeline.data.sources import Raw, demo, files, source_module
from pipeline.data.sources.demo import Demo
from pipeline.data.sources.files import Files
from pipeline.params import Preprocess
from tests.pipeline.data.conftest import START, Load, dense, items_of

INTERACTIONS = {"user_id": ["u1", "u1", "u2"], "item_id": ["i1", "i2", "i1"], "timestamp": [10, 20, 30]}
ITEMS = {"item_id": ["i1", "i2"], "title": ["One, with a comma", "Two"]}


def found(raw: Raw) -> dict[str, Finding]:
    return {finding.name: finding for finding in raw.findings}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_own_files_are_read_whatever_their_column_order_and_extra_columns(load: Load, suffix: str) -> None:
    log = pl.DataFrame(INTERACTIONS).with_columns(rating=5).select("rating", "timestamp", "item_id", "user_id")
    raw = load(log, pl.DataFrame(ITEMS), (f"log.{suffix}", f"items.{suffix}"), time="s")
    assert raw.interactions.to_dict(as_series=False) == INTERACTIONS
    assert raw.items.to_dict(as_series=False) == ITEMS
    assert raw.interactions.schema == files.INTERACTIONS
    assert raw.time_unit == "s"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_columns_of_own_items_are_fields_of_the_template(load: Load, suffix: str) -> None:
    table = pl.DataFrame(ITEMS).with_columns(brand=pl.Series(["Alder", None]), price=pl.Series([1.5, 2.0]))
    if suffix == "parquet":
        table = table.with_columns(tags=pl.Series([["a", "b"], None]), blob=pl.Series([{"x": 1}, {"x": 2}]))
    read = load(pl.DataFrame(INTERACTIONS), table, (f"log.{suffix}", f"items.{suffix}"), time="s").items
    assert read.select("item_id", "title").to_dict(as_series=False) == ITEMS
    assert [[value or None for value in row] for row in read.select("brand", "price").rows()] == [["Alder", "1.5"], [None, "2.0"]]
    assert read.columns == ["item_id", "title", "brand", "price"] + (["tags"] if suffix == "parquet" else [])
    if suffix == "parquet":
        assert read["tags"].to_list() == ["a, b", None]


def test_ids_are_text_every_character_as_it_is_written(load: Load) -> None:
    written = ["007", "7", "NA", "null", "1.50", "1e5", " x", "É", "nan", "-0"]
    log = pl.DataFrame({"user_id": written, "item_id": written[::-1], "timestamp": [START + i for i in range(len(written))]})
    raw = load(log, items_of(*written))
    assert raw.interactions["user_id"].to_list() == written
    assert raw.items["item_id"].to_list() == written
    numbers = pl.DataFrame({"user_id": [7], "item_id": [12], "timestamp": [START]})
    assert load(numbers, items_of("12"), ("log.parquet", "items.csv")).interactions.row(0) == ("7", "12", START)


def test_an_empty_id_is_none_quoted_or_not_and_is_counted(load: Load) -> None:
    log = f'user_id,item_id,timestamp\n"",a,{START}\n,a,{START}\nu,a,{START}\nu,a,\n'.encode()
    notes = found(load(log, items_of("a")))
    assert (notes["no_user_id"].count, notes["no_user_id"].total, notes["no_user_id"].warning) == (2, 4, True)
    assert notes["no_user_id"].line() == "WARNING (50.0 %): Dropped 2 rows without user_id."
    assert notes["no_timestamp"].count == 1


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("renamed", "says"),
    [
        ({"timestamp": "time_stamp"}, "column 'timestamp' is missing; did you mean 'time_stamp'?"),
        ({"user_id": "userid"}, "column 'user_id' is missing; did you mean 'userid'?"),
        ({"item_id": "z"}, "column 'item_id' is missing; valid: timestamp, user_id, z; name it in `columns`"),
    ],
)
def test_a_wrong_column_is_one_line_that_names_file_and_column(
    tmp_path: Path, load: Load, suffix: str, renamed: dict[str, str], says: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(pl.DataFrame(INTERACTIONS).rename(renamed), items_of("i1"), (f"log.{suffix}", "items.csv"), time="s")
    assert str(caught.value) == f"{tmp_path / 'log'}.{suffix}: {says}"


def test_columns_of_other_names(load: Load) -> None:
    log = pl.DataFrame(INTERACTIONS | {"stars": [1, 4, 5]}).rename({"user_id": "visitor", "item_id": "sku", "timestamp": "at"})
    columns = {"user_id": "visitor", "item_id": "sku", "timestamp": "at", "rating": "stars"}
    items = pl.DataFrame(ITEMS).rename({"item_id": "id", "title": "name"})
    raw = load(log, items, columns=columns, item_columns={"item_id": "id", "title": "name"}, time="s", min_rating=4)
    assert raw.interactions["item_id"].to_list() == ["i2", "i1"]
    assert raw.items.columns == ["item_id", "title"]
    assert found(raw)["min_rating"].count == 1


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_rating_that_is_no_number_is_none(load: Load, suffix: str) -> None:
    """NaN, as pandas writes a missing one, is above and below nothing."""
    log = pl.DataFrame(INTERACTIONS | {"rating": [float("nan"), 5.0, None]})
    raw = load(log, pl.DataFrame(ITEMS), (f"log.{suffix}", "items.csv"), time="s", min_rating=4)
    assert raw.interactions["item_id"].to_list() == ["i2"]
    assert found(raw)["min_rating"].text == "Dropped 2 interactions rated below 4, or not rated."


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_nan_is_no_user_no_item_no_time_and_no_title(load: Load, suffix: str) -> None:
    """As pandas writes missing values of a column of numbers."""
    nan = float("nan")
    log = [(1.0, 5.0, START + 0.5), (nan, 5.0, START + 1.0), (nan, 6.0, START + 2.0), (2.0, nan, START + 3.0), (2.0, 6.0, nan)]
    items = [(5.0, 50.0, 1.5), (nan, 60.0, 2.5), (6.0, nan, nan)]
    tables = []
    for rows, names in ((log, ["user_id", "item_id", "timestamp"]), (items, ["item_id", "title", "price"])):
        table = pl.DataFrame(rows, schema=names, orient="row")
        lines = "".join(json.dumps(row) + "\n" for row in table.iter_rows(named=True)).encode()
        tables.append(table if suffix == "parquet" else lines)
    raw = load(*tables, (f"log.{suffix}", f"items.{suffix}"))
    notes = found(raw)
    assert [notes[f"no_{name}"].count for name in files.INTERACTIONS] == [2, 1, 1]
    assert (raw.interactions.drop_nulls().rows(), raw.time_unit) == ([("1.0", "5.0", START * 1000 + 500)], "ms")
    assert raw.items.rows() == [("5.0", "50.0", "1.5"), ("6.0", None, None)]
    assert notes["catalogue_without_id"].count == notes["untitled_items"].count == 1


def test_an_id_that_reads_like_a_missing_value_is_named(load: Load) -> None:
    users = ["nan", "None", "\\N", "\\N", "Nancy"]
    log = pl.DataFrame({"user_id": users, "item_id": ["a"] * 5, "timestamp": [START + i for i in range(5)]})
    note = found(load(log, items_of("a")))["missing_user"]
    assert note.text == (
        "Perhaps a missing value that a program has written as text, but taken as an id: 3 user ids ('None', '\\\\N', …) in 4 "
        "rows; leave them empty, which drops the rows."
    )
    assert (note.count, note.total, note.warning) == (4, 5, True)


@pytest.mark.parametrize("form", ["texts", "points", "format"])
def test_times_that_no_click_can_have_are_a_warning(load: Load, form: str) -> None:
    """A clock that was wrong: half of the clicks are in 2106 or in the year 14."""
    days = [datetime.datetime(*day) for day in ((2014, 1, 1), (2106, 2, 7), (14, 1, 1), (2014, 1, 2))]
    times = {
        "texts": [f"{day.isoformat()}Z" for day in days],
        "points": days,
        "format": [f"{day:%d.%m.}{day.year:04}" for day in days],
    }
    log = pl.DataFrame({"user_id": ["u"] * 4, "item_id": ["a"] * 4, "timestamp": times[form]})
    options = {"time": "%d.%m.%Y"} if form == "format" else {}
    notes = found(load(log, items_of("a"), ("log.parquet", "items.csv"), **options))
    assert [(notes[name].count, notes[name].warning) for name in ("early_times", "late_times")] == [(1, True)] * 2
    assert notes["late_times"].text.startswith("Later than tomorrow: 1 time; ")


def test_a_smallest_rating_needs_ratings(load: Load) -> None:
    with pytest.raises(UserError, match=r"min_rating is 4, but log\.csv has no column 'rating'; name it in `columns`"):
        load(pl.DataFrame(INTERACTIONS), items_of("i1"), time="s", min_rating=4)


def test_a_smallest_rating_that_is_set_after_the_download_drops_no_rating_that_was_not_read(load: Load, tmp_path: Path) -> None:
    """DVC does not download again for `min_rating`, so ratings with a decimal comma would have counted as none."""
    rows = [f"u{i},a,{START + i},5" for i in range(200)]
    rows[3] = f'u3,a,{START},"4,5"'
    log = "\n".join(["user_id,item_id,timestamp,rating", *rows]).encode()
    assert load(log, items_of("a")).interactions.height == 200
    later = Files.parse({"kind": "files", "interactions": "log.csv", "items": "items.csv", "min_rating": 4}, "sources.mine")
    few = files.read(later, tmp_path / "raw")
    assert few.interactions.height == 199
    assert found(few)["unread_ratings"].text == (
        "Taken as not rated, because the rating is no number: 1 row (log.csv row 5: rating '4,5' is no number)."
    )
    raw = load(log, items_of("a"), min_rating=4)
    assert raw.interactions.height == 199
    assert "row 5: rating '4,5' is no number" in found(raw)["unread_ratings"].text, "after that download it is named"
    many = log.replace(b",5\n", b',"4,5"\n')
    load(many, items_of("a"))
    with pytest.raises(UserError) as caught:
        files.read(later, tmp_path / "raw")
    assert str(caught.value).startswith(
        "log.csv: 199 rows of 200 cannot be read (at most 1% are skipped); correct or remove them: "
    )
    assert str(caught.value).endswith(
        "; and 196 more; they were passed over while min_rating was empty, so download again: "
        "`dvc repro -f -s data/dvc.yaml:download@raw`"
    )
    record = tmp_path / "raw" / files.UNDERSTOOD
    older = {name: value for name, value in json.loads(record.read_text()).items() if name in ("time_unit", "findings")}
    record.write_text(json.dumps(older))
    assert files.read(later, tmp_path / "raw").interactions.height == 1, "without the record, as before"


@pytest.mark.parametrize("values", [[datetime.timedelta(1)] * 3, [[1], [2], [3]], [b"1", b"2", b"3"]])
def test_ratings_that_are_no_numbers_are_refused_only_where_they_are_used(load: Load, values: list[Any]) -> None:
    log, names = pl.DataFrame(INTERACTIONS).with_columns(rating=pl.Series(values)), ("log.parquet", "items.csv")
    assert load(log, items_of("i1"), names, time="s").interactions.to_dict(as_series=False) == INTERACTIONS
    for options in ({"min_rating": 4}, {"columns": {"rating": "rating"}}):
        with pytest.raises(UserError, match=r"log\.parquet: column 'rating' holds (Duration|List|Binary).*, not ratings"):
            load(log, items_of("i1"), names, time="s", **options)


def test_unreadable_rows_are_refused_together_and_few_of_many_dropped_by_number(load: Load) -> None:
    rows = [f"u{i},a,{START + i}" for i in range(400)]
    rows[4], rows[7], rows[9] = f"u4,a,{START},x", "u7,a", "u9,a,yesterday"
    log = "\n".join(["user_id,item_id,timestamp", *rows]).encode()
    raw = load(log, items_of("a"))
    assert raw.interactions.height == 397
    assert found(raw)["interactions_unreadable"].text == (
        "Dropped 2 unreadable rows (log.csv row 6: 4 fields, not 3; log.csv row 9: 2 fields, not 3)."
    )
    assert found(raw)["unreadable"].text == "Dropped 1 unreadable row (log.csv row 11: timestamp 'yesterday' is no time)."
    with pytest.raises(UserError) as caught:
        load("\n".join(["user_id,item_id,timestamp", *rows[:12]]).encode(), items_of("a"))
    assert "2 rows of 12 cannot be read (at most 1% are skipped)" in str(caught.value)
    assert "row 6: 4 fields, not 3; log.csv row 9: 2 fields" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_problems_that_are_alike_are_named_by_three(load: Load) -> None:
    rows = [f"u{i},a,{START + i}" if i % 3 else f"u{i},a,it's {i}" for i in range(60)]
    log = "\n".join(["user_id,item_id,timestamp", *rows])
    with pytest.raises(UserError) as caught:
        load(log.encode(), items_of("a"))
    assert str(caught.value).endswith(
        '20 rows of 60 cannot be read (at most 1% are skipped); correct or remove them: log.csv row 2: timestamp "it\'s 0" is no '
        'time; log.csv row 5: timestamp "it\'s 3" is no time; log.csv row 8: timestamp "it\'s 6" is no time; and 17 more'
    )
    assert len(str(caught.value)) < 400
    ratings = "\n".join(["user_id,item_id,timestamp,rating", *(f"u,a,{START},{'x' if i else 'y'}" for i in range(9)), "u,a,x,5"])
    with pytest.raises(UserError, match="rating 'y' is no number") as caught:
        load(ratings.encode(), items_of("a"), min_rating=1)
    assert str(caught.value).count(" is no ") == 10, "two kinds"


@pytest.mark.parametrize("form", ["%d.%m.%Y", "ms"])
def test_an_option_that_fits_no_time_is_the_mistake_and_not_the_data(load: Load, form: str) -> None:
    other = "'2023-04-01'" if form == "ms" else "'1680288822'"
    log = pl.DataFrame(INTERACTIONS | {"timestamp": [other.strip("'"), "", None]})
    with pytest.raises(UserError) as caught:
        load(log, items_of("i1"), time=form)
    named = form if form == "ms" else repr(form)
    assert str(caught.value).endswith(
        f"log.csv: column 'timestamp': no time fits `time: {named}`, e.g. {other}; leave the option out or correct it"
    )


def test_an_option_that_fits_few_times_is_the_mistake_too(load: Load) -> None:
    """The month before the day."""
    days = [f"{day:02}/01/2020" for day in range(1, 29)]
    log = pl.DataFrame({"user_id": days, "item_id": days, "timestamp": days})
    with pytest.raises(UserError, match=r"16 of 28 times do not fit `time: '%m/%d/%Y'`, e\.g\. '13/01/2020'; leave the option"):
        load(log, items_of("a"), time="%m/%d/%Y")
    with pytest.raises(UserError, match=r"1 row of 28 cannot be read .* timestamp 'x' is no time"):
        load(log.with_columns(timestamp=pl.Series(["x", *days[1:]])), items_of("a"), time="%d/%m/%Y")


def test_decimal_commas_of_ratings_are_named(load: Load) -> None:
    log = pl.DataFrame(INTERACTIONS | {"rating": ["1,99", "2", "3,50"]})
    with pytest.raises(UserError) as caught:
        load(log, items_of("i1"), time="s", min_rating=1)
    assert str(caught.value).endswith(
        "log.csv: column 'rating' has decimal commas, such as '1,99', in 2 rows; write points: '1.99'"
    )
    with pytest.raises(UserError, match=r"3 rows of 3 cannot be read .*'1,99' is no number"):
        load(log.with_columns(rating=pl.Series(["1,99", "good", "bad"])), items_of("i1"), time="s", min_rating=1)


def test_a_text_that_encloses_rows_is_a_warning_and_one_of_several_lines_is_not(load: Load) -> None:
    rows = [f"u{i},a,{START + i},tea" for i in range(100)]
    rows[10], rows[40] = f'u,a,{START},"55 inch', f'u,a,{START},"lamp"'
    log = "\n".join(["user_id,item_id,timestamp,query", *rows]).encode()
    notes = found(load(log, b'item_id,title\na,"Tea\ngreen"\nb,Cup\n'))
    assert notes["interactions_long_texts"].line() == (
        "WARNING (29.3 %): Read as part of a quoted text, though they look like rows: 29 lines; the longest row, of 31 lines, "
        "begins in log.csv line 12; check its quotes."
    )
    assert notes["items_long_texts"].line() == (
        "Texts of several lines: 1 row; the longest row, of 2 lines, begins in items.csv line 2."
    )


def test_times_within_a_second_keep_their_order(load: Load) -> None:
    """By item id, or cut to seconds, the order would be a, b, c."""
    times = [START * 1000 + 30, START * 1000 + 10, START * 1000 + 20]
    log = pl.DataFrame([(f"u{u}", item, t) for u in range(3) for item, t in zip("bca", times, strict=True)], orient="row")
    log.columns = ["user_id", "item_id", "timestamp"]
    for kind, unit in (("int", "ms"), ("ms", "ms"), ("us", "ms"), ("ns", "ms")):
        given = log if kind == "int" else log.with_columns(pl.from_epoch("timestamp", "ms").dt.cast_time_unit(kind))
        raw = load(given, items_of("a", "b", "c"), ("log.parquet", "items.csv"))
        assert raw.time_unit == unit
        made = build_sequences(raw, Preprocess(core=3, ties="item"))
        assert [made.items["item_id"][i] for i in made.users["items"][0]] == ["c", "a", "b"]
        assert made.users["timestamps"][0].to_list() == sorted(times)
        assert made.statistics["time_unit"] == "ms"


def test_times_that_a_spreadsheet_has_rounded_are_named(load: Load) -> None:
    log = pl.DataFrame({"user_id": ["u"] * 3, "item_id": list("abc"), "timestamp": ["1.68E+12", "1.68E+12", "1.69E+12"]})
    assert found(load(log, items_of("a")))["scientific_times"].line() == (
        "WARNING (100.0 %): In scientific notation, as spreadsheets write long numbers, so that different times may have become "
        "one: 3 times; the log has 2 different ones; write them in full."
    )
    whole = log.with_columns(timestamp=pl.Series(["1.680288822E+09", "1.680288823E+09", "1.68028882E+09"]))
    assert not found(load(whole, items_of("a")))["scientific_times"].warning


def test_titles_are_what_people_read(load: Load) -> None:
    titles = [
        "Tom &amp; Jerry&#39;s",
        "  padded ",
        "&nbsp;",
        "   ",
        "",
        "x",
        "R&D &copy2020 &amp;lt;",
        "!!!",
        "\u200b\u00a0\u200b",
    ]
    items = pl.DataFrame({"item_id": list("abcdefghi"), "title": titles})
    raw = load(pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [START]}), items)
    assert raw.items["title"].to_list() == ["Tom & Jerry's", "padded", None, None, None, "x", "R&D &copy2020 &lt;", "!!!", None]
    assert found(raw)["untitled_items"].text == "No title, or one of spaces only: 4 items of 9."


def test_an_item_twice_with_two_titles_is_named(load: Load) -> None:
    items = pl.DataFrame({"item_id": list("dababcd"), "title": ["&nbsp;", "One", "Two", "Uno", "Two", "Three", "Four"]})
    raw = load(pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [START]}), items)
    assert raw.items["title"].to_list() == ["One", "Two", "Three", "Four"]
    assert found(raw)["repeated_items"].text == (
        "Listed more than once, the first row with a title is taken: 3 items; with different titles: 'a'."
    )


def test_ids_that_a_program_has_changed_are_named(load: Load) -> None:
    log = pl.DataFrame({"user_id": ["1.2E+05", "u ", "v"], "item_id": ["818.0", "7.0", "7.0"], "timestamp": [START] * 3})
    notes = found(load(log, items_of("818", "7")))
    assert notes["scientific_user"].count == notes["spaces_user"].count == 1
    assert notes["decimal_item"].count == 2


@pytest.mark.parametrize(
    ("log", "catalogue", "advice"),
    [
        (["818.0", "7.0", "9.0"], ["818", "7", "9"], "the log's ids end in .0; in pandas, astype('Int64') before writing"),
        (["818", "7", "9"], ["818.0", "7.0", "9.0"], "the catalogue's ids end in .0"),
        (["a ", "b ", "c "], ["a", "b", "c"], "the log's ids have spaces around them; remove these"),
        (["007", "008", "009"], ["7", "8", "9"], "the log's ids start with zeros"),
        (
            ["7", "8", "9"],
            ["007", "008", "009"],
            "the catalogue's ids start with zeros that the log's lack; write both as",
        ),
        (["a", "b", "c"], [" a", "b ", "c "], "the catalogue's ids have spaces around them; remove these"),
        (["A", "B", "C"], ["a", "b", "c"], "the log's ids have capitals that the catalogue's lack"),
        (["abc", "abd", "abe"], ["Abc", "ABD", "Abe"], "the catalogue's ids have capitals that the log's lack"),
        (["a", "b", "c"], ["x", "y", "z"], "check which columns hold the ids"),
    ],
)
def test_no_common_item_shows_two_ids_of_each_side_and_what_to_do(
    load: Load, log: list[str], catalogue: list[str], advice: str
) -> None:
    with pytest.raises(UserError) as caught:
        build_sequences(load(dense(log), items_of(*catalogue)), Preprocess(core=3))
    text = str(caught.value)
    assert text.startswith("no item of the log is in the catalogue: the log has ")
    for side in (sorted(log), sorted(catalogue)):
        assert ", ".join(map(repr, side[:2])) in text
    assert advice in text


def test_ids_that_are_none_are_named_by_the_files_column(load: Load) -> None:
    for name in ("visitor", "sku"):
        log = pl.DataFrame({"visitor": ["u"], "sku": ["a"], "timestamp": [START]}).with_columns(pl.col(name).cast(pl.Binary))
        with pytest.raises(UserError, match=f"log.parquet: column '{name}' holds Binary, not identifiers"):
            load(log, items_of("a"), ("log.parquet", "items.csv"), columns={"user_id": "visitor", "item_id": "sku"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time": "seconds"}, "time is a unit (s, ms, us, ns) or a format such as '%d/%m/%Y %H:%M', found 'seconds'"),
        ({"columns": {"user": "u"}}, "unknown column 'user'; valid: user_id, item_id, timestamp, rating"),
        ({"columns": {"user_id": 1, "item_id": "x"}}, "mixes places and names"),
        ({"columns": {"user_id": 1}}, "a file without a header needs a place for each of user_id, item_id, timestamp"),
        ({"columns": {"user_id": 0, "item_id": 1, "timestamp": 2}}, "places count from 1"),
        ({"core": 2}, "core: Input should be greater than or equal to 3"),
        ({"columns": {"user_id": "item_id"}}, "columns: names 'item_id' for user_id and item_id; each needs a column of its own"),
        ({"columns": {"user_id": "x", "item_id": "x", "timestamp": "x"}}, "names 'x' for user_id, item_id and timestamp; each"),
        ({"columns": {"user_id": 1, "item_id": 1, "timestamp": 2}}, "columns: names place 1 for user_id and item_id; each needs"),
        ({"columns": {"rating": "timestamp"}}, "columns: names 'timestamp' for timestamp and rating; each needs"),
        ({"item_columns": {"title": "item_id"}}, "item_columns: names 'item_id' for item_id and title; each needs"),
        ({"item_columns": {"item_id": 2, "title": 2}}, "item_columns: names place 2 for item_id and title; each needs"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        Files.parse({"kind": "files", "interactions": "a", "items": "b", **options}, "sources.mine")
    assert says in str(caught.value)


def test_columns_may_change_places_and_a_field_may_repeat_a_column(load: Load) -> None:
    log = pl.DataFrame({"item_id": ["u"], "user_id": ["a"], "rating": [START]})
    columns = {"user_id": "item_id", "item_id": "user_id", "timestamp": "rating"}
    raw = load(log, b"a,Tea\n", columns=columns, item_columns={"item_id": 1, "title": 2, "code": 1})
    assert raw.interactions.rows() == [("u", "a", START)]
    assert raw.items.to_dicts() == [{"item_id": "a", "title": "Tea", "code": "a"}]


@pytest.mark.parametrize("kind", ["amazon2014", "demo", "files"])
def test_every_kind_of_source_has_its_module(kind: str) -> None:
    module = source_module(kind)
    assert callable(module.fetch)
    assert callable(module.read)


def test_the_demo_is_decided_by_its_seed_and_sizes() -> None:
    interactions, items = demo.generate(3, 80, 60)
    again = demo.generate(3, 80, 60)
    assert interactions.equals(again[0])
    assert items.equals(again[1])
    for other in (demo.generate(4, 80, 60), demo.generate(3, 81, 60), demo.generate(3, 80, 61)):
        assert not interactions.equals(other[0])
    assert not items.equals(demo.generate(4, 80, 60)[1])


def test_the_demo_is_written_and_read_back(tmp_path: Path) -> None:
    source = Demo(kind="demo", seed=3, items=80, users=60)
    demo.fetch(source, None, tmp_path)
    raw = demo.read(source, tmp_path)
    expected = demo.generate(3, 80, 60)
    assert raw.interactions.equals(expected[0])
    assert raw.items.equals(expected[1])


def test_the_demo_is_a_plausible_shop() -> None:
    interactions, items = demo.generate(0, 200, 100)
    assert items.height == items["item_id"].n_unique() == 200
    assert items["title"].str.len_chars().min() > 1
    assert items["title"].str.strip_chars().equals(items["title"])
    names = [name for _, name in demo.TYPES]
    assert all(any(name in title for name in names) for title in items["title"]), "a title always names the product"
    assert interactions["user_id"].n_unique() == 100
    assert set(interactions["item_id"]) <= set(items["item_id"])
    per_user = interactions.group_by("user_id").agg(pl.len(), pl.col("item_id").n_unique().alias("distinct"))
    assert per_user["len"].equals(per_user["distinct"].rename("len")), "a shopper buys a product once"
    assert (per_user["len"].min(), per_user["len"].max()) == demo.LENGTHS
    assert (interactions["timestamp"] % demo.DAY == 0).all()


def test_the_demos_shoppers_never_buy_before_what_they_bought_earlier() -> None:
    interactions, _ = demo.generate(0, 200, 100)
    for _, user in interactions.group_by("user_id", maintain_order=True):
        assert user["timestamp"].is_sorted()


def test_a_duration_is_no_field_and_no_time(load: Load) -> None:
    length = datetime.timedelta(seconds=5)
    names = ("log.parquet", "items.parquet")
    items = pl.DataFrame(
        {"item_id": ["i"], "title": ["x"], "lasts": [length], "each": [[length]], "day": [datetime.date(2020, 1, 2)]}
    )
    with pytest.raises(UserError, match=r"log.parquet: column 'timestamp' is a length of time, not a point in time"):
        load(pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [length]}), items, names)
    raw = load(pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [START]}), items, names)
    assert raw.items.to_dicts() == [{"item_id": "i", "title": "x", "day": "2020-01-02"}]
