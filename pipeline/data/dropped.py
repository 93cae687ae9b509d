"""What the filters of preprocessing drop, a sentence and a count for each; and how much of the order is arbitrary."""

import polars as pl

from common.words import plural
from pipeline.data.findings import LISTED, NO_VALUE, WARNING, Finding, quoted
from pipeline.data.interactions import KEYS, Dataset, both_sides
from pipeline.data.repeats import repeated
from pipeline.data.sources import Raw
from pipeline.params import Preprocess
from pipeline.texts import SHORTEST_TITLE

ORDERED = {
    "file": "their order is that of the log's rows (ties: file); if that is arbitrary, write `ties: shuffled`",
    "item": "their order is that of the item ids (ties: item), which a model learns; write `ties: shuffled`",
    "shuffled": "their order is arbitrary (ties: shuffled)",
}
BEFORE = ("unreadable", "min_rating", "unread_ratings")  # findings of rows that were dropped before the filters, of how many
LONGEST = 60  # characters of a text in a finding
NO_TITLE = rf"^(?i:{NO_VALUE}|#?n/?a)$"


def dropped(raw: Raw, made: Dataset, options: Preprocess, ties_chosen: bool = True) -> list[Finding]:
    """The findings of a dataset that `build_sequences` made of `raw`, in the order of the filters.

    ties_chosen: whether somebody wrote `ties`; if not, many ties are a warning, since their order decides what is tested.
    """
    steps = list(made.statistics["steps"].values())
    first, complete, deduplicated, titled, cored, capped = steps
    found: list[Finding] = []
    split = made.statistics.get("split")

    def lose(name: str, which: str, before: dict[str, int], after: dict[str, int]) -> None:
        count, total = before["interactions"] - after["interactions"], before["interactions"]
        if count:
            found.append(Finding(name, f"Dropped {plural(count, 'interaction')}{which}.", count, total, lost=True))

    if not any(finding.name.startswith("no_") for finding in raw.findings):
        lose("incomplete", " without a user, an item or a time", first, complete)
    lose("duplicates", " with the same user, item and time as a row before", complete, deduplicated)
    found += _unknown_items(raw, deduplicated["interactions"])
    lost = {noun: titled[f"{noun}s"] - cored[f"{noun}s"] for noun in ("user", "item")}
    removed = " and ".join(plural(count, noun) for noun, count in lost.items() if count)
    lose(
        "core",
        f" of {removed} with fewer than {options.core} (core)",
        titled,
        cored,
    )
    lose(
        "cap",
        f" older than the last {options.cap} of their user{' before valid_from' if split else ''} (cap)"
        + (f", and {plural(cored['items'] - capped['items'], 'item')} with them" if cored["items"] > capped["items"] else ""),
        cored,
        capped,
    )
    logged = max([first["interactions"], *(each.total for each in raw.findings if each.lost and each.name in BEFORE)])
    share = capped["interactions"] / logged
    kept = f"Kept: {plural(capped['users'], 'user')}, {plural(capped['items'], 'item')}, "
    kept += f"{plural(capped['interactions'], 'interaction')}, {100 * share:.1f} % of the log."
    found.append(Finding("kept", kept, capped["interactions"], logged))
    found += _poor_titles(made.items)
    if again := repeated(made.users).height:
        tested = made.users.height if not split else split["test_users"]
        text = f"Of {plural(tested, 'user')} with a test item, {again:,} had it before. A server that shows only new items never "
        text += "shows it; the test ranks it all the same, also if the history is not ranked."
        found.append(Finding("repeats", text, again, tested))
    if split:
        text = f"Split by time, validation from {options.valid_from}, test from {options.test_from}: a model learns from "
        text += f"{plural(split['training_users'], 'user')}, {plural(split['validation_users'], 'user')} validate it, "
        text += f"{plural(split['test_users'], 'user')} test it."
        found.append(Finding("split", text))
    return found + _tied(made, options, ties_chosen)


def _poor_titles(items: pl.DataFrame) -> list[Finding]:
    """Items whose title is perhaps none, and items that their text does not tell from another, where these are many."""
    found = []
    none = items["title"].str.contains(NO_TITLE)
    if count := int(none.sum()):
        text = f"Perhaps a missing value that a program has written as text, but taken as a title: {plural(count, 'item')} "
        text += f"({quoted(items.filter(none)['title'].unique().sort(), LISTED)}); bring them, or leave them empty, which drops "
        text += "the items."
        found.append(Finding("missing_titles", text, count, items.height, lost=True))
    shared = items.filter(~none & pl.col("text").is_duplicated())
    what = "title" if items["text"].equals(items["title"]) else "text"
    most = shared.group_by("text").len().sort(["len", "text"], descending=[True, False]).head(1)
    for example, count in most.iter_rows():
        short = example if len(example) <= LONGEST else f"{example[:LONGEST]}…"
        text = f"With the same {what} as another item: {plural(shared.height, 'item')}, {count:,} of them {short!r}; "
        text += "adapters cannot tell them apart by their text."
        finding = Finding("shared_titles", text, shared.height, items.height, lost=True)
        found += [finding] if finding.warning else []
    return found


def _tied(made: Dataset, options: Preprocess, chosen: bool) -> list[Finding]:
    """Say which shares of the items have the time of the item before them, where that is much; count the larger share."""
    shares = made.statistics["tied"]
    if max(shares["steps"], shares["test"]) <= WARNING:
        return []
    text = f"At the same time as the item before: {100 * shares['steps']:.1f} % of the training items after a user's first, "
    text += f"{100 * shares['test']:.1f} % of the test items; {ORDERED[options.ties]}"
    text += "." if chosen else f". To keep this order, write `ties: {options.ties}`, which ends this warning."
    split = "test" in made.users.columns
    train = made.users["train"] if split else made.users["items"].list.len().cast(pl.Int64) - 2
    steps = int((train - 1).clip(lower_bound=0).sum())
    tested = made.users.height - (made.users["test"].null_count() if split else 0)
    total, share = (tested, shares["test"]) if shares["test"] >= shares["steps"] else (steps, shares["steps"])
    return [Finding("tied", text, round(share * total), total, lost=not chosen)]


def _unknown_items(raw: Raw, total: int) -> list[Finding]:
    """Interactions with items that the catalogue does not list, and with items whose title there is too short."""
    log = raw.interactions
    listed = raw.items["item_id"].drop_nulls().unique()
    unknown = log.filter(~pl.col("item_id").is_in(listed.implode())).drop_nulls().unique(KEYS)
    titles = raw.items.unique("item_id", keep="first", maintain_order=True)
    untitled = titles.filter(~(pl.col("title").str.len_chars() >= SHORTEST_TITLE).fill_null(False))["item_id"]
    lacking = log.filter(pl.col("item_id").is_in(untitled.implode())).drop_nulls().unique(KEYS)
    found = []
    if unknown.height:
        items = plural(unknown["item_id"].n_unique(), "item")
        text = f"Dropped {plural(unknown.height, 'interaction')} with {items} that the catalogue does not list; "
        found.append(
            Finding("unknown_items", f"{text}{both_sides(unknown['item_id'], listed)}.", unknown.height, total, lost=True)
        )
    if lacking.height:
        items = plural(lacking["item_id"].n_unique(), "item")
        text = f"Dropped {plural(lacking.height, 'interaction')} with {items} without a title of at least two characters "
        text += f"({quoted(lacking['item_id'].unique().sort())})."
        found.append(Finding("untitled", text, lacking.height, total, lost=True))
    return found
