"""What is embedded of an item: a template filled with its fields.

Importing this module does not import torch: a new item's text is made by the same `fill`.
"""

import html
from collections.abc import Iterable, Mapping
from string import Formatter

from common.errors import UserError, did_you_mean

TITLE = "{title}"


def fields(template: str) -> list[str]:
    """The fields that a template names, in order; raise ValueError where it is no template or names none."""
    names = []
    for _, name, style, conversion in Formatter().parse(template):
        if name is None:
            continue
        if style or conversion:
            raise ValueError(f"a field is only a name in braces, found '{template}'")
        names.append(name)
    if not names:
        raise ValueError(f"a template names at least one field, as in '{TITLE}', found '{template}'")
    return names


def check_fields(template: str, available: Iterable[str], where: str) -> None:
    """Raise UserError that starts with `where` and names the available fields, where the template names another one."""
    available = sorted(available)
    for name in fields(template):
        if name not in available:
            near = did_you_mean(name, available)
            listed = "" if near.startswith("; valid") else f" (available: {', '.join(available)})"
            raise UserError(f"{where}: the items have no field '{name}'{near}{listed}")


def fill(template: str, item: Mapping[str, str | None]) -> str:
    """The text of an item. HTML entities in fields become characters.

    A field that the item lacks takes the words before it along: "{title} by {brand}." without a brand is the title and a full
    stop. Where the first fields are missing, the text starts with the first that is there.
    """
    text, lacking = "", False
    for words, name, _, _ in Formatter().parse(template):
        value = "" if name is None else item[name] or ""
        if name is not None and not value.strip():
            lacking = lacking or not text
            continue
        text += (words.lstrip(" \t\n.,;:|/-–") if lacking and not text else words) + html.unescape(value)
    return text
