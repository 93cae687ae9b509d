"""Times in every form, against Python's own datetime; and the forms that are refused."""

import datetime
import random
from datetime import UTC, timedelta, timezone
from decimal import Decimal

import polars as pl
import pytest

from common.errors import UserError
from pipeline.data.times import UNITS, check_form, read_times

WHERE = "log.csv: column 'at'"
MOMENTS = [datetime.datetime(2017, 7, 14, 2, 40, 0, tzinfo=UTC), datetime.datetime(2019, 2, 28, 23, 59, 59, tzinfo=UTC)]
SECONDS = [int(moment.timestamp()) for moment in MOMENTS]


def read(values: list, form: str | None = None, kind: pl.DataType | None = None) -> list[int | None]:
    """Seconds since 1970 where the unit is s; the times must be whole seconds."""
    times = read_times(pl.Series("at", values, dtype=kind), form, WHERE)
    assert times.unit == "s", times
    return times.values.to_list()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.String, pl.UInt64])
def test_the_unit_of_numbers_is_recognised_by_their_size(unit: str, kind: pl.DataType) -> None:
    numbers = pl.Series("at", [second * UNITS[unit] for second in SECONDS]).cast(kind)
    times = read_times(numbers, None, WHERE)
    assert (times.values.to_list(), times.unit) == (SECONDS, "s")
    assert times.form.endswith("(recognised by their size)")


@pytest.mark.parametrize("unit", UNITS)
def test_the_coarsest_unit_that_loses_nothing_is_kept(unit: str) -> None:
    numbers = [second * UNITS[unit] + 1 for second in SECONDS]
    times = read_times(pl.Series(numbers), None, WHERE)
    assert (times.values.to_list(), times.unit) == (numbers, unit)


@pytest.mark.parametrize("text", ["1500000000", "1500000000.0", "1500000000.", " 1500000000 ", "+1500000000", "1.5E+09", "1.5e9"])
def test_whole_seconds_however_they_are_written(text: str) -> None:
    assert read([text]) == [1_500_000_000]


@pytest.mark.parametrize("form", [None, "ms"])
def test_times_in_scientific_notation_are_counted(form: str | None) -> None:
    times = read_times(pl.Series(["1.68E+12", "1680000000123", None, "1.7e12"]), form, WHERE)
    assert (times.values.to_list(), times.scientific) == ([1_680_000_000_000, 1_680_000_000_123, None, 1_700_000_000_000], 2)
    assert read_times(pl.Series(["2023-01-01", "2023-12-01", "1.7e9"]), None, WHERE).scientific == 0


def test_times_that_lost_digits_are_told_from_those_that_are_written_in_full() -> None:
    times = [1_680_288_820 + second for second in range(20)]
    for form, rounded in ((".5E", True), (".8E", True), (".9E", False), (".18e", False)):
        assert read_times(pl.Series([format(time, form) for time in times]), None, WHERE).rounded == rounded
    java = pl.Series([f"{time / 1e9!r}E9" for time in times])  # without zeros at the end
    assert read_times(java, None, WHERE).values.to_list() == times
    assert not read_times(java, None, WHERE).rounded
    assert not read_times(pl.Series(list(map(str, times))), None, WHERE).rounded


def test_times_with_and_without_zones_in_one_column_are_counted() -> None:
    texts = ["2023-01-01T12:00:00+02:00", "2023-01-01 12:00:00", "2023-01-01", "tomorrow", None]
    assert read_times(pl.Series(texts), None, WHERE).form == "ISO 8601 with zones; 2 times without one, taken as UTC"
    for some, form in ((texts[:1], "ISO 8601 with zones"), (texts[1:], "ISO 8601, taken as UTC")):
        assert read_times(pl.Series(some), None, WHERE).form == form


def test_fractions_of_a_second_are_kept_to_the_microsecond() -> None:
    for kind in (pl.String, pl.Float64):
        times = read_times(pl.Series(["1500000000.123456", "1500000000.5"]).cast(kind), None, WHERE)
        assert (times.values.to_list(), times.unit) == ([1_500_000_000_123_456, 1_500_000_000_500_000], "us")


def test_fractions_of_decimals_are_kept_as_those_of_floats_are() -> None:
    """A column of DECIMAL, as databases export it to Parquet."""
    values = [Decimal("1500000000.25"), Decimal("1500000000.75"), None]
    times = read_times(pl.Series(values), None, WHERE)
    floats = read_times(pl.Series(values).cast(pl.Float64), None, WHERE)
    assert (times.values.to_list(), times.unit) == ([1_500_000_000_250, 1_500_000_000_750, None], "ms")
    assert (times.unit, times.form) == (floats.unit, floats.form)
    assert times.values.equals(floats.values)
    for form in (None, "ns"):
        whole = read_times(pl.Series([Decimal("1500000000123456789.00"), None]), form, WHERE)
        assert (whole.values.to_list(), whole.unit) == ([1_500_000_000_123_456_789, None], "ns"), "no float in between"
    assert read([Decimal("20170714.00"), None], "%Y%m%d") == [SECONDS[0] - 9600, None]
    for large in (Decimal("1e30"), 1e30):
        assert read_times(pl.Series([large]), "%Y%m%d", WHERE).unreadable == [0], "more than 64 bits hold"


def test_iso_is_read_as_python_reads_it() -> None:
    """200 moments in random zones, precisions and spellings."""
    rng = random.Random(0)
    texts, expected = [], []
    for _ in range(200):
        zone = timezone(timedelta(minutes=rng.choice([0, 60, -300, 330, 765, -570])))
        moment = datetime.datetime(
            rng.randint(1995, 2024), rng.randint(1, 12), rng.randint(1, 28), rng.randint(0, 23), rng.randint(0, 59),
            rng.randint(0, 59), rng.choice([0, 1, 250_000, 999_999]), zone,
        )  # fmt: skip
        expected.append(moment)
        text = moment.isoformat(sep=rng.choice("T "))
        texts.append(text.replace("+00:00", rng.choice(["Z", "+00:00", " UTC", "+0000", "+00"])))
    times = read_times(pl.Series(texts), None, WHERE)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=UTC)
    assert times.unit == "us"
    assert times.values.to_list() == [(moment - epoch) // timedelta(microseconds=1) for moment in expected]
    assert times.form == "ISO 8601 with zones"


def test_iso_without_zone_is_utc_and_a_date_is_its_midnight() -> None:
    assert read(["2017-07-14 02:40", "2019-02-28T23:59:59"]) == SECONDS
    assert read(["1970-01-02"]) == [86_400]
    assert "UTC" in read_times(pl.Series(["2017-07-14 02:40"]), None, WHERE).form
    times = read_times(pl.Series(["2017-07-14T02:40:00.000000001Z"]), None, WHERE)
    assert (times.unit, times.values[0] - SECONDS[0] * 10**9) == ("ns", 1)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Paris"])
def test_columns_of_points_in_time(unit: str, zone: str | None) -> None:
    moments = MOMENTS if zone else [moment.replace(tzinfo=None) for moment in MOMENTS]
    column = pl.Series("at", moments, dtype=pl.Datetime(unit, zone))
    assert read_times(column, None, WHERE).values.to_list() == SECONDS
    finer = read_times(column + timedelta(milliseconds=7), None, WHERE)
    assert (finer.values.to_list(), finer.unit) == ([1000 * second + 7 for second in SECONDS], "ms")


def test_columns_of_dates() -> None:
    assert read([datetime.date(1990, 1, 2), None]) == [int(datetime.datetime(1990, 1, 2, tzinfo=UTC).timestamp()), None]


def test_a_year_that_nanoseconds_do_not_reach_is_right() -> None:
    """In 64 bits, nanoseconds since 1970 end in 1677 and in 2262; beyond, they would come back at the other end."""
    for text in ("9999-12-31T23:59:59", "2300-01-01", "2262-05-01", "1677-01-01 00:00:01", "0001-01-01"):
        expected = datetime.datetime.fromisoformat(text).replace(tzinfo=UTC) - datetime.datetime(1970, 1, 1, tzinfo=UTC)
        assert read([text, "2017-07-14"]) == [expected // timedelta(seconds=1), SECONDS[0] - 9600]
    finer = read_times(pl.Series(["9999-12-31T23:59:59.5", "2017-07-14T02:40:00.000001Z"]), None, WHERE)
    assert (finer.values.to_list(), finer.unit) == ([253_402_300_799_500_000, SECONDS[0] * 10**6 + 1], "us")


def test_a_year_that_the_logs_nanoseconds_do_not_reach_is_unreadable() -> None:
    for values, form in (
        (["9999-12-31", "2017-07-14T02:40:00.000000001"], None),
        (["9999-12-31 00:00:00.0", "2017-07-14 02:40:00.000000001"], "%Y-%m-%d %H:%M:%S%.f"),
    ):
        times = read_times(pl.Series(values), form, WHERE)
        assert (times.unreadable, times.unit) == ([0], "ns")
        assert times.values.to_list() == [None, SECONDS[0] * 10**9 + 1]
    assert read(["31.12.9999 00:00:00.0", "14.07.2017 02:40:00.0"], "%d.%m.%Y %H:%M:%S%.f") == [253_402_214_400, SECONDS[0]]
    assert read_times(pl.Series([1e300, 1.5]), "s", WHERE).unreadable == [0]


def test_whole_numbers_are_read_by_a_named_format() -> None:
    for kind in (pl.Int64, pl.Float64, pl.String):
        assert read(pl.Series([20170714, None]).cast(kind).to_list(), "%Y%m%d", kind) == [SECONDS[0] - 9600, None]
    assert read_times(pl.Series([20170714, 5]), "%Y%m%d", WHERE).unreadable == [1]
    assert read([20170714.0, float("nan")], "%Y%m%d") == [SECONDS[0] - 9600, None]


def test_a_named_format() -> None:
    assert read(["14/07/2017 02:40", "28/02/2019 23:59"], "%d/%m/%Y %H:%M") == [SECONDS[0], SECONDS[1] - 59]
    assert read(["14.07.2017"], "%d.%m.%Y") == [SECONDS[0] - 2 * 3600 - 40 * 60]
    assert read(["14/07/2017 04:40 +0200"], "%d/%m/%Y %H:%M %z") == [SECONDS[0]]


def test_what_is_no_time_is_named_by_row_and_empty_is_none() -> None:
    times = read_times(pl.Series(["2017-07-14", "", None, "soon", "2017-02-30", "2017-07-14 25:00"]), None, WHERE)
    assert times.unreadable == [3, 4, 5]
    assert times.values.null_count() == 5
    assert read_times(pl.Series(["1500000000", "x", "", "inf", "nan"]), None, WHERE).unreadable == [1, 3, 4]
    assert read_times(pl.Series(["14/07/2017", "07-14"]), "%d/%m/%Y", WHERE).unreadable == [1]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            [0, 1_500_000_000],
            "taken as seconds, 1 of 2 times lie outside 1990 to tomorrow (row 0: 0); correct them, or take them as",
        ),
        ([-5, 1_500_000_000_000], "taken as milliseconds, 1 of 2 times lie outside 1990 to tomorrow (row 0: -5)"),
        (
            [1, 2, 3],
            "no number lies between 1990 and tomorrow (row 0: 1, row 1: 2, row 2: 3); if they only count, write `time: s`",
        ),
        ([20_170_714], "(row 0: 20170714); if they are dates, write `time: '%Y%m%d'` in the source's section"),
        (
            ["14/07/2017"],
            "cannot be read as times, e.g. '14/07/2017'; write seconds since 1970 or ISO 8601, or give their format",
        ),
        ([True], "holds Boolean, not points in time"),
        ([[1]], "not points in time"),
        ([datetime.time(3)], "holds Time, not points in time"),
        ([timedelta(3)], "is a length of time, not a point in time"),
    ],
)
def test_what_is_refused(values: list, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read_times(pl.Series(values), None, WHERE)
    assert says in str(caught.value)
    assert str(caught.value).startswith(WHERE)
    assert "\n" not in str(caught.value)


def test_a_guess_is_refused_for_tomorrow_but_one() -> None:
    now = datetime.datetime.now(UTC).timestamp()
    assert read([int(now)])
    with pytest.raises(UserError, match="no number lies between 1990 and tomorrow"):
        read([int(now) + 2 * 86_400 + 60])


def test_a_named_unit_is_taken_at_its_word() -> None:
    assert read([0, -5, 7], "s") == [0, -5, 7]
    assert read([1000, 2000], "ms") == [1, 2]
    assert read(["5"], "s") == [5]


def test_a_unit_or_a_format() -> None:
    assert [check_form(form) for form in ("s", "ns", "%Y")] == ["s", "ns", "%Y"]
    with pytest.raises(ValueError, match="found 'min'"):
        check_form("min")
