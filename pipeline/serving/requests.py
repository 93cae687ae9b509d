"""Files of requests for recommendations, and of answers: Parquet."""

from pathlib import Path

import polars as pl

from common.errors import UserError, first_line
from common.names import check_file_name
from pipeline.artifacts import atomic_file

ANSWER = {"request", "rank", "item_id", "title", "score", "source"}  # columns of a file of answers
IDS = (pl.String, pl.Categorical, pl.Enum, pl.Null)  # types of ids, with the integers


def check_out(out: Path, read: list[Path]) -> None:
    """Raise UserError unless the answers can go to `out`, which may replace earlier answers or an empty file only.

    read: the files that are read; `out` must be none of them.
    """
    check_file_name(out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it, such as {out / 'answers.parquet'}")
    if out.suffix.lower() != ".parquet":
        raise UserError(f"--out {out}: the answers are Parquet; choose a name that ends in .parquet")
    if same := next((file for file in read if file.exists() and out.exists() and out.samefile(file)), None):
        raise UserError(f"--out {out} would replace {same}, which is read; choose another name")
    if out.is_file() and out.stat().st_size and not _holds_answers(out):
        raise UserError(f"--out {out} would replace a file that holds no answers; choose another name, or remove it")


def _holds_answers(path: Path) -> bool:
    try:
        return {*pl.scan_parquet(path, glob=False).collect_schema()} >= ANSWER
    except (pl.exceptions.PolarsError, OSError):
        return False


def read_requests(path: Path) -> pl.DataFrame:
    """The requests: a column `user_id` or `history` (lists). Whole numbers and categories become text, as in the log.

    Raises UserError for any other file.
    """
    check_file_name(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        table = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from None
    named = [name for name in ("history", "user_id") if name in table.columns]
    if not named:
        found = ", ".join(table.columns) or "no column"
        raise UserError(f"{path}: found {found}; name the column with the users user_id, or that with lists of items history")
    if len(named) == 2:
        raise UserError(f"{path}: found both user_id and history; remove one of them")
    column = table[named[0]]
    lists = named[0] == "history"
    kind = column.dtype.inner if lists and isinstance(column.dtype, pl.List) else column.dtype
    # A list of nothing has no type of its own.
    if (lists and column.dtype not in (pl.List, pl.Null)) or not (kind in IDS or kind.is_integer()):
        wanted = "lists of item ids, each text or a whole number" if lists else "ids as text or whole numbers"
        raise UserError(f"{path}: column {named[0]} holds {column.dtype}; write {wanted}")
    column = column.cast(pl.List(pl.String) if lists else pl.String)
    for rows, what, advice in _gaps(column, lists):
        if rows:
            where = f"row {rows[0]:,}" if len(rows) == 1 else f"{len(rows):,} rows, the first of them row {rows[0]:,}"
            raise UserError(f"{path}: {what} in {where} (rows count from 0); {advice}")
    return column.to_frame()


def _gaps(column: pl.Series, lists: bool) -> list[tuple[list[int], str, str]]:
    """The rows, from 0, where something is missing, with what it is and what to do; none if nothing is missing."""
    empty = column.is_null().arg_true().to_list()
    if not lists:
        return [(empty, "no user_id", "name a user, or remove the row")]
    inside = column.list.eval(pl.element().is_null()).list.any().fill_null(False).arg_true().to_list()
    return [
        (empty, "no history", "write an empty list for a user without one"),
        (inside, "a missing item in the history", "leave it out"),
    ]


def write_answers(found: pl.DataFrame, requests: pl.DataFrame, out: Path) -> None:
    """Write the answers of `Recommender.recommend`, with the user's id where requests name users."""
    if "user_id" in requests.columns:
        users = requests.with_row_index("request").cast({"request": pl.UInt32})
        found = users.join(found, on="request", maintain_order="right")
        found = found.select("request", "user_id", "rank", "item_id", "title", "score", "source")
    with atomic_file(out) as partial:
        found.write_parquet(partial)
