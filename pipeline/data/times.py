"""Points in time, in whatever form a log has them, as whole numbers of one unit since 1970 (UTC)."""

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import polars as pl

from common.errors import UserError, first_line
from common.words import plural

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # -> in a second
NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
FINEST = UNITS["ns"]
DAY = 86_400  # s
EARLIEST = datetime.datetime(1990, 1, 1, tzinfo=datetime.UTC)  # a log of clicks is not older
NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
ISO = (
    r"^\s*(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?"
    r"\s*(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?\s*$"
)


@dataclass(frozen=True)
class Times:
    """Times of every row, null where there is none or it cannot be read.

    unit: the coarsest of UNITS that loses nothing; form: how they were written; unreadable: rows (from 0) with a value that is no
    time; scientific: how many are in scientific notation; rounded: whether none of these has the digits of a whole unit.
    """

    values: pl.Series
    unit: str
    form: str
    unreadable: list[int]
    scientific: int = 0
    rounded: bool = False


def tomorrow() -> float:
    """Seconds from 1970 to this time tomorrow: no click is later."""
    return datetime.datetime.now(datetime.UTC).timestamp() + DAY


def check_form(form: str) -> str:
    """Return `form` if it is a unit or a format of strptime; raise ValueError otherwise."""
    if form not in UNITS and "%" not in form:
        raise ValueError(f"time is a unit ({', '.join(UNITS)}) or a format such as '%d/%m/%Y %H:%M', found '{form}'")
    return form


def as_date(value: int, unit: str) -> str:
    """A time as a date and time of day; as a number where the calendar has none."""
    try:
        return f"{datetime.datetime.fromtimestamp(value // UNITS[unit], datetime.UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{value} {unit}"


def read_times(column: pl.Series, form: str | None, where: str, place: Callable[[int], str] = "row {}".format) -> Times:
    """Read a column of times. form: a unit or a format of strptime; None: recognised.

    Recognised are dates, points in time of any unit and zone, ISO 8601 texts, and numbers whose unit puts all of them between
    1990 and tomorrow. Times without a zone are taken as UTC. Raises UserError, which starts with `where` and names rows by
    `place`, for a column that holds no times, and for numbers of which no unit fits all.
    """
    kind = column.dtype
    if isinstance(kind, pl.Datetime):
        unit = kind.time_unit or "us"
        zone = f" of zone {kind.time_zone}" if kind.time_zone else ", taken as UTC"
        return _coarsest(column.dt.epoch(unit), unit, f"points in time{zone}", [])
    if kind == pl.Date:
        return Times(column.cast(pl.Int64) * DAY, "s", "dates, each taken as midnight UTC", [])
    if kind == pl.Duration:
        raise UserError(f"{where} is a length of time, not a point in time; write seconds since 1970")
    if kind == pl.Time or kind.is_nested() or kind in (pl.Binary, pl.Boolean, pl.Object):
        raise UserError(f"{where} holds {kind}, not points in time; write ISO 8601 or seconds since 1970")
    if kind.is_numeric() and (form is None or form in UNITS):
        return _numbers(column, form, where, place)
    if _may_have_fractions(kind):
        numbers = column.fill_nan(None) if kind.is_float() else column
        whole = numbers.cast(pl.Int64, strict=False)  # 20170714.0 is 20170714
        column = column if (numbers % 1 != 0).any() or whole.null_count() > numbers.null_count() else whole
    text = column.cast(pl.String)
    if form is None or form in UNITS:
        whole = text.cast(pl.Int64, strict=False)
        if whole.null_count() == text.null_count():  # the common case, without the copies of a long log's texts that follow
            return _numbers(whole, form, where, place)
    text = text.str.strip_chars()
    text = text.set(text == "", None)
    if form is not None and form not in UNITS:
        return _by_format(text, form, where)
    is_number = text.str.contains(NUMBER).fill_null(True)
    if is_number.all() or form in UNITS or _share(is_number) > _share(text.str.contains(ISO).fill_null(True)):
        scientific = text.filter(text.str.contains("[eE]") & is_number)
        return replace(_numbers(text, form, where, place), scientific=scientific.len(), rounded=_rounded(scientific))
    return _iso(text, where)


def _rounded(scientific: pl.Series) -> bool:
    """Whether every number has fewer decimals than its exponent.

    >>> _rounded(pl.Series(["1.68E+09", "1.7E+09"])), _rounded(pl.Series(["1.68028882E9", "1.680288821E9"]))
    (True, False)
    """
    decimals = scientific.str.extract(r"\.(\d*)[eE]").str.len_chars().fill_null(0).cast(pl.Int64)
    exponents = scientific.str.extract(r"[eE]([+-]?\d+)").str.strip_chars_start("+").cast(pl.Int64, strict=False)
    return scientific.len() > 0 and bool((decimals < exponents).all())


def check_fits(column: pl.Series, times: Times, form: str | None, where: str) -> None:
    """Raise UserError, which starts with `where`, if most times are not of the `form` that the user named: it is the mistake."""
    wrong, right = len(times.unreadable), times.values.len() - times.values.null_count()
    if form is not None and wrong > right:
        which = f"{wrong:,} of {wrong + right:,} times do not fit" if right else "no time fits"
        raise UserError(
            f"{where}: {which} `time: {form if form in UNITS else repr(form)}`, e.g. {str(column[times.unreadable[0]])!r}; leave "
            "the option out or correct it"
        )


def _share(flags: pl.Series) -> float:
    return int(flags.sum()) / max(1, flags.len())


def _may_have_fractions(kind: pl.DataType) -> bool:
    """Whether a type of numbers holds fractions, which a cast to whole numbers would cut without a word."""
    return kind.is_float() or kind.is_decimal()


def _numbers(column: pl.Series, form: str | None, where: str, place: Callable[[int], str]) -> Times:
    """Numbers of the unit `form`, or of the one unit that puts all of them between 1990 and tomorrow."""
    numbers = column.cast(pl.Float64, strict=False)
    numbers = numbers.set(~numbers.is_finite().fill_null(True), None)
    unreadable = (numbers.is_null() & column.is_not_null()).arg_true().to_list()
    unit = form or _fitting_unit(numbers, where, place)
    values = column.cast(pl.Int64, strict=False) if column.dtype != pl.String else _whole(column)
    cut = _may_have_fractions(column.dtype) and bool((numbers % 1 != 0).any())
    if cut or bool((values.is_null() & numbers.is_not_null()).any()):
        return _fractions(numbers, unit, unreadable)
    said = "named in `time`" if form else "recognised by their size"
    return _coarsest(values, unit, f"{NAMES[unit]} since 1970 ({said})", unreadable)


def _whole(text: pl.Series) -> pl.Series:
    """Whole numbers of texts such as `1500000000`, `1500000000.0` and `1.5E+09`; null where one has a fraction."""
    direct = text.str.replace(r"^\+", "").str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
    scientific = text.cast(pl.Float64, strict=False)
    whole = scientific.set((scientific % 1 != 0).fill_null(True), None).cast(pl.Int64, strict=False)
    return direct.fill_null(whole)


def _fractions(numbers: pl.Series, unit: str, unreadable: list[int]) -> Times:
    """Numbers with fractions, to the microsecond, which is what a float holds of a time of today."""
    micro = (numbers * (UNITS["us"] / UNITS[unit])).round(0).cast(pl.Int64, strict=False)
    unreadable = sorted({*unreadable, *(micro.is_null() & numbers.is_not_null()).arg_true()})  # too large
    return _coarsest(micro, "us", f"{NAMES[unit]} since 1970, with fractions", unreadable)


def _fitting_unit(numbers: pl.Series, where: str, place: Callable[[int], str]) -> str:
    """The unit that puts all numbers between 1990 and tomorrow; UserError that names the rows where none does."""
    earliest, latest = EARLIEST.timestamp(), tomorrow()
    outside = {unit: ~(numbers / size).is_between(earliest, latest).fill_null(True) for unit, size in UNITS.items()}
    unit = min(outside, key=lambda name: int(outside[name].sum()))
    if not (wrong := outside[unit]).any():
        return unit
    rows = wrong.arg_true().to_list()
    examples = ", ".join(f"{place(row)}: {numbers[row]:.15g}" for row in rows[:10])
    if len(rows) == numbers.len() - numbers.null_count():
        days = numbers.cast(pl.Int64, strict=False).cast(pl.String).str.to_date("%Y%m%d", strict=False).drop_nulls()
        dates = days.len() == len(rows) and days.is_between(EARLIEST.date(), datetime.date(2100, 1, 1)).all()
        advice = "they are dates, write `time: '%Y%m%d'`" if dates else "they only count, write `time: s`"
        raise UserError(
            f"{where}: as seconds, milli-, micro- or nanoseconds, no number lies between 1990 and tomorrow ({examples}); if "
            f"{advice} in the source's section"
        )
    raise UserError(
        f"{where}: taken as {NAMES[unit]}, {len(rows):,} of {numbers.len():,} times lie outside 1990 to tomorrow ({examples}"
        f"{', …' if len(rows) > 10 else ''}); correct them, or take them as they are by `time: {unit}` in the source's section"
    )


def _by_format(text: pl.Series, form: str, where: str) -> Times:
    try:
        parsed = text.str.to_datetime(form, strict=False, time_unit="us")
        if re.search(r"%\.?[39]?f", form):
            exact = text.str.to_datetime(form, strict=False, time_unit="ns")
            exact = exact.set(~parsed.dt.year().is_between(1678, 2261), None)  # nanoseconds in 64 bits end in 2262
            parsed = exact if (exact.dt.epoch("ns") % 1000 != 0).any() else parsed
    except pl.exceptions.PolarsError:
        try:
            parsed = text.str.to_date(form, strict=False).cast(pl.Datetime("us"))
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{where}: `time: {form}` is no usable format ({first_line(error)})") from None
    unreadable = (parsed.is_null() & text.is_not_null()).arg_true().to_list()
    unit = parsed.dtype.time_unit  # type: ignore[attr-defined]
    return _coarsest(parsed.dt.epoch(unit), unit, f"of the format '{form}'", unreadable)


def _iso(text: pl.Series, where: str) -> Times:
    """ISO 8601: a date, a time of day to the nanosecond, a zone; the last two may be left out."""
    parts = (
        text.str.extract_groups(ISO)
        .struct.unnest()
        .rename({"1": "date", "2": "hour", "3": "minute", "4": "second", "5": "fraction", "6": "zone"})
    )
    number = {name: pl.col(name).cast(pl.Int64).fill_null(0) for name in ("hour", "minute", "second")}
    digits = pl.col("zone").str.replace_all(r"\D", "").str.pad_end(4, "0")
    offset = digits.str.slice(0, 2).cast(pl.Int64, strict=False) * 3600 + digits.str.slice(2, 2).cast(pl.Int64, strict=False) * 60
    sign = pl.when(pl.col("zone").str.starts_with("-")).then(-1).otherwise(1)
    day = pl.col("date").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Int64)
    possible = (number["hour"] < 24) & (number["minute"] < 60) & (number["second"] < 61)
    seconds = day * DAY + number["hour"] * 3600 + number["minute"] * 60 + number["second"]
    seconds = seconds - (sign * offset).fill_null(0)
    nanoseconds = pl.col("fraction").str.pad_end(9, "0").cast(pl.Int64).fill_null(0)
    read = parts.select(seconds=pl.when(possible).then(seconds), nanoseconds=nanoseconds)
    unit = next(unit for unit, size in UNITS.items() if not (read["nanoseconds"] % (FINEST // size) != 0).any())
    held = pl.col("seconds").abs() < 2**63 // UNITS[unit] - 1  # nanoseconds in 64 bits end in 2262
    value = pl.col("seconds") * UNITS[unit] + pl.col("nanoseconds") // (FINEST // UNITS[unit])
    values = read.select(pl.when(held).then(value)).to_series()
    unreadable = (values.is_null() & text.is_not_null()).arg_true().to_list()
    if len(unreadable) == text.len() - text.null_count() and text.null_count() < text.len():
        raise UserError(
            f"{where} cannot be read as times, e.g. {text[unreadable[0]]!r}; write seconds since 1970 or ISO 8601, or give their "
            "format: `time: '%d/%m/%Y %H:%M'`"
        )
    readable = values.is_not_null()
    without = int((parts["zone"].is_null() & readable).sum())
    mixed = f" with zones; {plural(without, 'time')} without one, taken as UTC" if without else " with zones"
    return _coarsest(values, unit, f"ISO 8601{', taken as UTC' if without == readable.sum() else mixed}", unreadable)


def _coarsest(values: pl.Series, unit: str, form: str, unreadable: list[int]) -> Times:
    """`values` of `unit` in the coarsest unit that loses nothing."""
    for coarser, size in UNITS.items():
        factor = UNITS[unit] // size
        if factor >= 1 and not (values % factor != 0).any():
            return Times((values // factor).alias("timestamp").cast(pl.Int64), coarser, form, unreadable)
    return Times(values.alias("timestamp"), unit, form, unreadable)
