"""The one exception for mistakes that the user can fix."""

from collections.abc import Iterable
from difflib import get_close_matches

from common.secrets import masked

LONGEST = 2000  # characters


class UserError(Exception):
    """A mistake that the user can fix. The text is one line: what, where, how. Stages print it and exit with status 1.

    Passwords and tokens of URLs in the text are replaced by `***`; what no line can show, as a line break in a name, by its code;
    the middle of a text longer than LONGEST by `…`.
    """

    def __init__(self, message: str) -> None:
        shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in masked(message))
        text = "".join(shown)
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that is most similar; None if none is similar."""
    return next(iter(get_close_matches(name, sorted(valid), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message: the nearest valid name, or the list of valid names if none is similar.

    >>> did_you_mean("spectra", ["base", "spectran"])
    "; did you mean 'spectran'?"
    >>> did_you_mean("x", ["base", "spectran"])
    '; valid: base, spectran'
    """
    names = sorted(valid)
    near = nearest(name, names)
    return f"; did you mean '{near}'?" if near else f"; valid: {', '.join(names) or 'none'}"
