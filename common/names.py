"""Names of datasets, encoders, adapters and so on."""

import re
from pathlib import Path
from typing import Any

from common.errors import UserError, did_you_mean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_form(kind: str, name: Any) -> str:
    """Return `name` if it is safe in a path and in a command; raise UserError otherwise. kind: "dataset", …, for the message.

    A name consists of letters, digits, `_` and `-`, and starts with a letter or digit. So it cannot lead out of a folder, has no
    special meaning in a shell, and contains no dot, which separates keys in DVC.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{kind} {name!r} is not a valid name; use letters, digits, '_' and '-', starting with a letter or digit")
    return name


def check_file_name(path: Path) -> None:
    """Raise UserError for a file whose name is not UTF-8, as archives of other systems have them: no artifact can record it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{str(path)!a}: the name of this file is not UTF-8; rename it") from None


def check_name(kind: str, name: str, registry: Any) -> str:
    """Return `name` if it is in `registry` (any container of names); else raise UserError with the nearest valid name."""
    if check_form(kind, name) not in registry:
        raise UserError(f"unknown {kind} '{name}'{did_you_mean(name, registry)}")
    return name
