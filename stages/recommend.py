"""Recommend items to a user, after a history, or for a file of requests: `python -m stages.recommend --user ID`.

The trained checkpoint answers. A file of requests is Parquet with a column `user_id`, or `history` (lists of item ids, oldest
first); the answers are Parquet too.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from common.arguments import Arguments
from common.errors import UserError
from common.words import plural
from pipeline.data.findings import quoted
from pipeline.runs import CHECKPOINT
from pipeline.serving.requests import check_out, read_requests, write_answers
from stages import check_checkpoint, run

if TYPE_CHECKING:
    from pipeline.serving.recommender import Recommender


def main() -> str:
    given = arguments()
    requests = None if given.requests is None else read_requests(given.requests)

    from pipeline.serving.recommender import POPULARITY, Recommender

    recommender = Recommender.load(given.checkpoint)
    if given.new_items:
        recommender = recommender.with_new_items(given.new_items)
    had = None
    if requests is not None and "history" in requests.columns:
        histories = requests["history"].to_list()
    elif given.history is not None:
        histories = [given.history]
    else:
        users = [given.user] if requests is None else requests["user_id"].to_list()
        histories = [recommender.history_of(user) for user in users]
        had = None if given.keep_history else items_had(recommender, users)
    try:
        found = recommender.recommend(
            histories, given.k, not given.keep_history, given.allow, given.deny, had, given.skip_unknown
        )
    except UserError as error:
        text = str(error).replace("skip_unknown", "--skip-unknown")
        raise UserError(f"{given.requests}: {text}" if given.requests else text.replace("history 0", "--history")) from None
    if given.skip_unknown:
        histories = known_items(recommender, given, histories)
    say_strangers(given, histories)
    if requests is None:
        print_table(found)
        source = "popularity" if found["source"].eq(POPULARITY).any() else recommender.run.name
        return f"{plural(found.height, 'item')} by {source}"
    write_answers(found, requests, given.out)
    return f"{plural(found.height, 'item')} for {plural(len(histories), 'request')} in {given.out}"


def arguments() -> Namespace:
    """Return the command line's options, which fit together; the checkpoint is there, and `out` can be written."""
    parser = Arguments(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--user", metavar="ID", help="a user of the log")
    which.add_argument("--history", nargs="+", metavar="ITEM", help="item ids, oldest first")
    which.add_argument("--requests", type=Path, metavar="FILE", help="Parquet with a column user_id or history; needs --out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Parquet to write: a row per request and recommended item")
    parser.add_argument("-k", type=int, default=10, help="items per request (10)")
    parser.add_argument("--keep-history", action="store_true", help="recommend items of the history too")
    parser.add_argument("--allow", nargs="+", metavar="ITEM", help="recommend only these")
    parser.add_argument("--deny", nargs="+", metavar="ITEM", default=[], help="recommend none of these")
    parser.add_argument("--skip-unknown", action="store_true", help="pass over items that the catalogue lacks")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, metavar="DIR", help=f"a trained run ({CHECKPOINT})")
    parser.add_argument("--new-items", type=Path, metavar="FILE", help="catalogue with items that the training did not know")
    given = parser.parse_args()
    if (given.requests is None) != (given.out is None):
        parser.error("--requests and --out go together")
    check_checkpoint(given.checkpoint)
    if given.out is not None:
        check_out(given.out, [file for file in (given.requests, given.new_items) if file is not None])
    return given


def known_items(recommender: "Recommender", given: Namespace, histories: list[list[str]]) -> list[list[str]]:
    """Return the histories without items that the catalogue lacks; name such items of the histories, --allow and --deny."""
    catalogue = set(recommender.item_ids)
    unknown = [item for items in (*histories, given.allow or [], given.deny) for item in items if item not in catalogue]
    if unknown:
        print(f"recommend: passed over {plural(len(unknown), 'unknown item')} ({quoted(unknown)})", file=sys.stderr)
    return [[item for item in history if item in catalogue] for history in histories]


def say_strangers(given: Namespace, histories: list[list[str]]) -> None:
    """Say how many histories have no item of the catalogue, so that popularity answers."""
    strangers = sum(not history for history in histories)
    if not strangers:
        return
    who = "--history has no item of the catalogue"
    if given.user is not None:
        who = f"user {given.user!r} has no item of the catalogue in the history"
    if given.requests is not None:
        who = f"{strangers:,} of {len(histories):,} requests have no item of the catalogue in the history"
    print(f"recommend: {who}: the most popular items instead", file=sys.stderr)


def items_had(recommender: "Recommender", users: list[str]) -> list[list[str]] | None:
    """All items that each user had; None, with a line that says so, where the log is needed for this and is not here."""
    try:
        return [recommender.had_by(user) for user in users]
    except UserError as error:
        print(f"recommend: {error}; without it, items that the filters left out may come again", file=sys.stderr)
        return None


def print_table(found: pl.DataFrame) -> None:
    for row in found.iter_rows(named=True):
        print(f"{row['rank']:4}  {row['item_id']:14}  {row['score']:9.4f}  {' '.join(row['title'].split())}")


if __name__ == "__main__":
    run(main)
