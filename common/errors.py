"""The one exception that means "the user can mend this"."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake a user can mend. Its text is one line: what, where, what to do. Stages print it and exit with status 1."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest valid name, or the list of valid names where none is near."""
    names = sorted(valid)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; valid: {', '.join(names) or 'none'}"
