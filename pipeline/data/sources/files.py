"""A user's own catalogue and click log, in any common format."""

import html
import os
import re
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, field_validator

from common.errors import UserError
from common.words import enumeration, plural
from pipeline.artifacts import main_checkout, read_json, write_json
from pipeline.data import Source, Ties
from pipeline.data.findings import LISTED, NO_VALUE, Finding, findings, quoted
from pipeline.data.sources import Raw, read_parquet_pair, write_parquet_pair
from pipeline.data.table_file import Columns, Wanted
from pipeline.data.tables import BAD_SHARE, TableRead, matching_files, read_tables, refuse_many, unreadable
from pipeline.data.times import NAMES, UNITS, Times, as_date, check_fits, check_form, read_times, tomorrow

INTERACTIONS = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
ITEMS = {"item_id": pl.String, "title": pl.String}
RATING = "rating"
UNDERSTOOD = "understood.json"
UNREAD_RATINGS = "unread_ratings"  # in UNDERSTOOD: those of a download that did not need them
CODE = (
    "pipeline/data/findings.py",
    "pipeline/data/json_lines.py",
    "pipeline/data/table_file.py",
    "pipeline/data/tables.py",
    "pipeline/data/text_tables.py",
    "pipeline/data/times.py",
)  # that reads the files, beside this module
ENTITY = re.compile(r"&#?\w+;")  # with its semicolon: "R&D" and "&copy2020" are what they are
MISSING = rf"^(?i:{NO_VALUE})$"
SCIENTIFIC = r"^[+-]?\d+(\.\d+)?[eE][+-]?\d+$"
DECIMAL = r"^\d+\.0$"
DECIMAL_COMMA = r"^[+-]?\d+,\d+$"


class Files(Source):
    """The two tables of a user's own dataset."""

    kind: Literal["files"]
    interactions: str = Field(
        description="the click log: a file, or several by a glob; Parquet, CSV, TSV, JSON lines, gzip of each"
    )
    items: str = Field(description="the catalogue, in any of these formats; its other columns are fields for the template")
    columns: Columns = Field(
        default_factory=dict,
        description="the log's names for user_id, item_id, timestamp and rating; places, from 1, if it has no header",
    )
    item_columns: Columns = Field(
        default_factory=dict,
        description="the catalogue's names for item_id, title and fields; places, from 1, if it has no header",
    )
    time: str | None = Field(
        None, description="unit of the times (s, ms, us, ns) or their format, as in strptime; recognised and said if empty"
    )
    min_rating: float | None = Field(None, description="keep interactions with at least this rating")
    ties: Ties = Field("file", description="instead of `preprocess.ties`: the order of a log's rows is information")

    def own_files(self) -> dict[str, Path]:
        """Both tables' files. Their names are relative to the project, or absolute where the options name them so.

        An absolute name is the same in every checkout of a machine. Raises UserError if a file is missing.
        """
        folder, found = main_checkout(), {}
        for pattern in (self.interactions, self.items):
            for path in matching_files(folder, pattern):
                found[str(path) if Path(pattern).is_absolute() else os.path.relpath(path, folder)] = path
        return found

    @field_validator("time")
    @classmethod
    def _time_is_known(cls, time: str | None) -> str | None:
        return None if time is None else check_form(time)

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, columns: Columns) -> Columns:
        return _known(columns, (*INTERACTIONS, RATING))

    @field_validator("item_columns")
    @classmethod
    def _item_columns_are_known(cls, columns: Columns) -> Columns:
        return _known(columns, tuple(ITEMS), others=True)


def _known(columns: Columns, names: tuple[str, ...], others: bool = False) -> Columns:
    """`columns` if they are all places or all names; raise ValueError otherwise."""
    for ours in columns:
        if not others and ours not in names:
            raise ValueError(f"unknown column '{ours}'; valid: {', '.join(names)}")
    kinds = {isinstance(theirs, int) for theirs in columns.values()}
    needed = [name for name in names if name != RATING]
    if len(kinds) > 1:
        raise ValueError("mixes places and names; give one or the other")
    if True in kinds and set(needed) - set(columns):
        raise ValueError(f"a file without a header needs a place for each of {', '.join(needed)}")
    if any(isinstance(place, int) and place < 1 for place in columns.values()):
        raise ValueError("places count from 1")
    roles = {name: columns.get(name, name) for name in names if name in needed or name in columns}
    for theirs in roles.values():
        if len(same := [name for name in roles if roles[name] == theirs]) > 1:
            what = f"place {theirs}" if isinstance(theirs, int) else repr(theirs)
            raise ValueError(f"names {what} for {enumeration(same)}; each needs a column of its own")
    return columns


def fetch(source: Files, mirror: str | None, directory: Path) -> None:
    """Read both tables, and write the log's needed columns, the items' fields and what was understood into `directory`.

    Paths are relative to the project's root. Rows without a user, item or time stay, for preprocessing to count.
    """
    notes: list[Finding] = []
    log, unit, unread = read_log(source, notes)
    items = read_items(source, notes)
    write_parquet_pair(log, items, directory)
    for note in notes:
        print(note.line(), flush=True)
    understood: dict[str, Any] = {"time_unit": unit, "findings": [note.record() for note in notes]}
    write_json(directory / UNDERSTOOD, understood | ({UNREAD_RATINGS: unread} if unread else {}))


def read(source: Files, directory: Path) -> Raw:
    """Read back what `fetch` wrote, without interactions rated below `min_rating`.

    Raises UserError if `min_rating` was set after a download that passed over many ratings it could not read: rows with a rating
    such as `4,5` would be dropped as not rated.
    """
    raw = read_parquet_pair(directory)
    understood = read_json(directory / UNDERSTOOD, "the download stage")
    notes = findings(understood["findings"])
    log = raw.interactions
    if source.min_rating is not None:
        if RATING not in log.columns:
            raise UserError(
                f"min_rating is {source.min_rating:g}, but {source.interactions} has no column 'rating'; name it in `columns`"
            )
        unread = understood.get(UNREAD_RATINGS)
        if unread and unread["count"] <= BAD_SHARE * unread["rows"]:
            notes.append(_unread_ratings(unread["count"], unread["first"], unread["rows"]))
        elif unread:
            says = unreadable(source.interactions, unread["count"], unread["rows"], unread["first"])
            again = f"`dvc repro -f -s data/dvc.yaml:download@{directory.name}`"
            raise UserError(f"{says}; they were passed over while min_rating was empty, so download again: {again}")
        kept = log.filter(pl.col(RATING) >= source.min_rating)
        lost = log.height - kept.height
        text = f"Dropped {plural(lost, 'interaction')} rated below {source.min_rating:g}, or not rated."
        notes.append(Finding("min_rating", text, lost, log.height, lost=True))
        if not kept.height:
            raise UserError(f"{source.interactions}: no rating reaches min_rating {source.min_rating:g}; lower it")
        log = kept
    return Raw(log.select(list(INTERACTIONS)), raw.items, {}, understood["time_unit"], notes)


def read_log(source: Files, notes: list[Finding]) -> tuple[pl.DataFrame, str, dict[str, Any]]:
    """The log as user_id, item_id, timestamp, rating if there is one; the unit of its times; unread ratings. Adds to `notes`.

    Ratings that are no numbers are problems of their rows where `min_rating` or `columns` asks for ratings. Elsewhere, they are
    null and recorded: their count, that of all rows, and the first problems; empty if there are none.
    """
    columns: Columns = {name: source.columns.get(name, name) for name in INTERACTIONS}
    placed = isinstance(columns["user_id"], int)
    unnamed = RATING not in source.columns and (placed or RATING in columns.values())
    optional: Columns = {} if unnamed else {RATING: source.columns.get(RATING, RATING)}
    table = read_tables(matching_files(main_checkout(), source.interactions), Wanted(columns, optional))
    path, frame = table.files[0].path, table.frame
    _describe(table, "interactions", notes)
    where = f"{path}: column '{columns['timestamp']}'"
    times = read_times(frame["timestamp"], source.time, where, table.place)
    check_fits(frame["timestamp"], times, source.time, where)
    problems = [f"{table.place(row)}: {columns['timestamp']} {frame['timestamp'][row]!r} is no time" for row in times.unreadable]
    made = {
        "user_id": ids(frame["user_id"], path, columns["user_id"]),
        "item_id": ids(frame["item_id"], path, columns["item_id"]),
        "timestamp": times.values,
    }
    wanted = source.min_rating is not None or RATING in source.columns
    if wanted and RATING in frame.columns and not _is_text(frame[RATING].dtype):
        raise UserError(f"{path}: column '{optional[RATING]}' holds {frame[RATING].dtype}, not ratings")
    unread: dict[str, Any] = {}
    unrated: list[str] = []
    if RATING in frame.columns and _is_text(frame[RATING].dtype):
        rating = frame[RATING].cast(pl.String).str.strip_chars()
        made[RATING] = rating.cast(pl.Float64, strict=False)
        wrong = (made[RATING].is_null() & rating.is_not_null() & (rating != "")).arg_true().to_list()
        made[RATING] = made[RATING].fill_nan(None)  # of a text 'nan', which no comparison would drop
        listed = wrong if wanted else wrong[:LISTED]
        says = [f"{table.place(row)}: {RATING} {rating[row]!r} is no number" for row in listed]
        if wanted:
            _refuse_commas(rating, wrong, f"{path}: column '{optional[RATING]}'")
            unrated = says
        elif wrong:
            unread = {"count": len(wrong), "rows": frame.height, "first": says}
    refuse_many(table, problems + unrated, frame.height)
    log = pl.DataFrame(made)
    if times.unreadable:
        log = log.filter(~pl.int_range(log.height).is_in(times.unreadable))
    if problems:
        notes.append(_unreadable_rows("unreadable", problems, frame.height))
    if unrated:
        notes.append(_unread_ratings(len(unrated), unrated, frame.height))
    _describe_times(log["timestamp"], times, notes)
    _describe_missing(log, notes)
    for name in ("user_id", "item_id"):
        _describe_ids(log[name], name.removesuffix("_id"), notes)
    return log, times.unit, unread


def read_items(source: Files, notes: list[Finding]) -> pl.DataFrame:
    """The catalogue as item_id, title and its other columns as text. Adds to `notes`.

    Titles have their HTML entities replaced and no spaces around them; one of spaces and invisible characters only is none.
    """
    columns: Columns = {name: source.item_columns.get(name, name) for name in ITEMS}
    placed = isinstance(columns["item_id"], int)
    optional = {name: theirs for name, theirs in source.item_columns.items() if name not in ITEMS}
    wanted = Wanted(columns, optional, others=not placed, option="item_columns")
    table = read_tables(matching_files(main_checkout(), source.items), wanted)
    path, frame = table.files[0].path, table.frame
    _describe(table, "items", notes)
    if frame["title"].dtype.is_nested() or frame["title"].dtype == pl.Binary:
        raise UserError(f"{path}: column '{columns['title']}' holds {frame['title'].dtype}, not text")
    titles = frame["title"].cast(pl.String)
    if titles.str.contains(ENTITY.pattern).any():
        titles = titles.map_elements(_without_entities, return_dtype=pl.String, skip_nulls=True)
    titles = titles.str.strip_chars()
    blank = titles.str.contains(r"^[\s\p{Z}\p{C}]*$").fill_null(True)
    titles = titles.set(blank, None)
    keys = ids(frame["item_id"], path, columns["item_id"])
    items = frame.drop(list(ITEMS)).select(*_fields(frame.drop(list(ITEMS))))
    items = pl.DataFrame({"item_id": keys, "title": titles}).hstack(items)
    if unnamed := keys.null_count():
        text = f"Dropped {plural(unnamed, 'row')} of the catalogue without an id."
        notes.append(Finding("catalogue_without_id", text, unnamed, items.height, lost=True))
        items = items.filter(pl.col("item_id").is_not_null())
    if blank.sum():
        text = f"No title, or one of spaces only: {plural(int(blank.sum()), 'item')} of {frame.height:,}."
        notes.append(Finding("untitled_items", text, int(blank.sum()), frame.height))
    repeated = items.group_by("item_id").agg(pl.len(), titles=pl.col("title").drop_nulls().n_unique()).filter(pl.col("len") > 1)
    if repeated.height:
        names = quoted(repeated.filter(pl.col("titles") > 1)["item_id"].sort(), 10)
        different = f"; with different titles: {names}" if names else ""
        text = f"Listed more than once, the first row with a title is taken: {plural(repeated.height, 'item')}{different}."
        notes.append(Finding("repeated_items", text, repeated.height, items.height))
        titled_first = items.sort(pl.col("title").is_null(), maintain_order=True)
        items = titled_first.unique("item_id", keep="first", maintain_order=True)
    _describe_ids(items["item_id"], "catalogue item", notes)
    return items


def ids(column: pl.Series, path: Path, theirs: str | int) -> pl.Series:
    """Identifiers as text, every character as it is written; an empty one is none. theirs: the file's name of the column."""
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object, pl.Duration):
        raise UserError(f"{path}: column '{theirs}' holds {column.dtype}, not identifiers")
    text = column.cast(pl.String)
    empty = text == ""
    return text.set(empty, None) if empty.any() else text  # `set` copies the column


def _refuse_commas(rating: pl.Series, wrong: list[int], where: str) -> None:
    """Raise UserError if the ratings that are no numbers all have a comma for the decimal point, and are too many to drop."""
    if len(wrong) > BAD_SHARE * rating.len() and rating.gather(wrong).str.contains(DECIMAL_COMMA).all():
        raise UserError(
            f"{where} has decimal commas, such as {rating[wrong[0]]!r}, in {plural(len(wrong), 'row')}; write points: "
            f"{rating[wrong[0]].replace(',', '.')!r}"
        )


def _without_entities(text: str) -> str:
    return ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


def _unreadable_rows(name: str, problems: list[str], total: int) -> Finding:
    text = f"Dropped {plural(len(problems), 'unreadable row')} ({_some(problems, len(problems))})."
    return Finding(name, text, len(problems), total, lost=True)


def _unread_ratings(count: int, first: list[str], total: int) -> Finding:
    text = f"Taken as not rated, because the rating is no number: {plural(count, 'row')} ({_some(first, count)})."
    return Finding("unread_ratings", text, count, total, lost=True)


def _some(problems: list[str], count: int) -> str:
    """The first of so many problems."""
    return "; ".join(problems[:LISTED]) + (", …" if count > LISTED else "")


def _describe(table: TableRead, what: str, notes: list[Finding]) -> None:
    first = table.files[0]
    more = f" and {plural(len(table.files) - 1, 'more file')}" if len(table.files) > 1 else ""
    notes.append(Finding(what, f"{first.path.name}{more}: {first.how}, {plural(table.frame.height, 'row')}."))
    if not table.frame.height:
        raise UserError(f"{first.path}: no row was found below the header")
    if table.bad:
        notes.append(_unreadable_rows(f"{what}_unreadable", table.bad, table.frame.height + len(table.bad)))
    _describe_long_texts(table, what, notes)


def _describe_long_texts(table: TableRead, what: str, notes: list[Finding]) -> None:
    long = [(file.long, file.path.name) for file in table.files if file.long]
    if not long:
        return
    longest, name = max(long, key=lambda pair: pair[0].longest)
    where = f"the longest row, of {longest.longest:,} lines, begins in {name} line {longest.line:,}"
    swallowed = sum(texts.swallowed for texts, _ in long)
    if swallowed:
        text = (
            f"Read as part of a quoted text, though they look like rows: {plural(swallowed, 'line')}; {where}; check its quotes."
        )
    else:
        text = f"Texts of several lines: {plural(sum(texts.rows for texts, _ in long), 'row')}; {where}."
    total = table.frame.height + swallowed
    notes.append(Finding(f"{what}_long_texts", text, swallowed, total, lost=bool(swallowed)))


def _describe_times(values: pl.Series, times: Times, notes: list[Finding]) -> None:
    known = values.drop_nulls()
    if known.len():
        span = " to ".join(as_date(int(end), times.unit) for end in (known.min(), known.max()))  # type: ignore[arg-type]
        kept = f"; kept to the {NAMES[times.unit].removesuffix('s')}"
        notes.append(Finding("times", f"Times: {times.form}{kept}; {span}."))
    if times.scientific:
        text = "In scientific notation, as spreadsheets write long numbers, so that different times may have become one: "
        text += f"{plural(times.scientific, 'time')}; the log has {known.n_unique():,} different ones; write them in full."
        notes.append(Finding("scientific_times", text, times.scientific, values.len(), lost=times.rounded))
    if early := int((known <= 0).sum()):
        text = f"Zero or negative, which is 1970 or before: {plural(early, 'time')}; a missing time may have been written as 0."
        notes.append(Finding("early_times", text, early, values.len(), lost=True))
    if late := int((known > tomorrow() * UNITS[times.unit]).sum()):
        text = f"Later than tomorrow: {plural(late, 'time')}; such an item counts as its user's most recent, which is tested."
        notes.append(Finding("late_times", text, late, values.len(), lost=True))


def _describe_missing(log: pl.DataFrame, notes: list[Finding]) -> None:
    for name in INTERACTIONS:
        if missing := log[name].null_count():
            text = f"Dropped {plural(missing, 'row')} without {name}."
            notes.append(Finding(f"no_{name}", text, missing, log.height, lost=True))


def _describe_ids(column: pl.Series, what: str, notes: list[Finding]) -> None:
    """Ids that look as if a program had changed them. Of those that read like a missing value, the rows are counted."""
    known = column.drop_nulls().unique().sort()
    for name, pattern, says in (
        ("spaces", r"^\s|\s$", "With a space at an end, which is part of the id"),
        ("missing", MISSING, "Perhaps a missing value that a program has written as text, but taken as an id"),
        (
            "scientific",
            SCIENTIFIC,
            "In scientific notation, as spreadsheets write long numbers, so that different ids may have become one",
        ),
        (
            "decimal",
            DECIMAL,
            "With .0 at the end, as pandas writes a column with gaps (astype('Int64') before writing leaves ids whole)",
        ),
    ):
        found = known.filter(known.str.contains(pattern))
        if found.len():
            text = f"{says}: {plural(found.len(), f'{what} id')} ({quoted(found)})"
            count, total = found.len(), known.len()
            if none := name == "missing":
                count, total = int(column.is_in(found.implode()).sum()), column.len()
                text += f" in {plural(count, 'row')}; leave them empty, which drops the rows"
            notes.append(Finding(f"{name}_{what.replace(' ', '_')}", f"{text}.", count, total, lost=none))


def _fields(table: pl.DataFrame) -> list[pl.Expr]:
    """Every column as text, lists joined by commas; what is neither (a struct, binary, a duration) is no field."""
    made = []
    for name, kind in table.schema.items():
        if isinstance(kind, pl.List) and _is_text(kind.inner):
            made.append(pl.col(name).cast(pl.List(pl.String)).list.drop_nulls().list.join(", "))
        elif _is_text(kind):
            made.append(pl.col(name).cast(pl.String))
    return made


def _is_text(kind: object) -> bool:
    """Whether polars can write values of this type as text."""
    return isinstance(kind, pl.DataType) and not kind.is_nested() and kind not in (pl.Binary, pl.Duration, pl.Object)
