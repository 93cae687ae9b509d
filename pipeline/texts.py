"""Item texts: templates that are filled with an item's fields.

Importing this module does not import torch, so that a service can build the texts of new items with `fill`.
"""

import html
from collections.abc import Iterable, Mapping
from string import Formatter

from common.errors import UserError, did_you_mean, nearest

TITLE = "{title}"
SHORTEST_TITLE = 2  # characters; an item with a shorter one counts as untitled


def fields(template: str) -> list[str]:
    """Return the fields of a template, in order. Raises ValueError if it is not a template or has no field."""
    names = []
    for _, name, style, conversion in Formatter().parse(template):
        if name is None:
            continue
        if style or conversion:
            raise ValueError(f"a field of a template is a name in braces, found '{template}'")
        names.append(name)
    if not names:
        raise ValueError(f"a template has at least one field, as in '{TITLE}', found '{template}'")
    return names


def check_fields(template: str, available: Iterable[str], where: str) -> None:
    """Raise UserError if a template has a field that is not in `available`. where: the start of the message."""
    available = sorted(available)
    for name in fields(template):
        if name not in available:
            all_fields = f" (available: {', '.join(available)})" if nearest(name, available) else ""
            raise UserError(f"{where}: the items have no field '{name}'{did_you_mean(name, available)}{all_fields}")


def fill(template: str, item: Mapping[str, str | None]) -> str:
    """Return the text of an item. HTML entities in fields become characters.

    If a field is empty, the literal text before it is dropped too. If the first fields are empty, the text starts with the first
    field that is not, without the punctuation before it.

    >>> fill("{title} by {brand}.", {"title": "Tea", "brand": None})
    'Tea.'
    >>> fill("{brand}: {title}", {"title": "Tea", "brand": ""})
    'Tea'
    """
    text, first_is_empty = "", False
    for words, name, _, _ in Formatter().parse(template):
        value = "" if name is None else item[name] or ""
        if name is not None and not value.strip():
            first_is_empty = first_is_empty or not text
            continue
        text += (words.lstrip(" \t\n.,;:|/-–") if first_is_empty and not text else words) + html.unescape(value)
    return text
