"""What was understood of a dataset and what was dropped, each in a sentence with a count."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

WARNING = 0.1  # a share above which a filter's loss is a warning
EXAMPLES = 2  # ids of each side in a message
NO_VALUE = r"nan|nat|none|null|\(null\)|\\n|<na>|undefined"  # a regular expression of what programs write for a missing text
LISTED = 10  # problems of a file that are listed together


@dataclass(frozen=True)
class Finding:
    """A sentence about `count` of `total` rows, interactions or items; count 0: only what was understood.

    `lost`: whether the counted things are dropped or spoilt, so that a large share is a warning.
    """

    name: str
    text: str
    count: int = 0
    total: int = 0
    lost: bool = False

    @property
    def warning(self) -> bool:
        return self.lost and self.count > WARNING * self.total

    def line(self) -> str:
        """The sentence, marked where it is a warning.

        >>> Finding("core", "30 interactions are dropped.", 30, 100, lost=True).line()
        'WARNING (30.0 %): 30 interactions are dropped.'
        """
        return f"WARNING ({100 * self.count / self.total:.1f} %): {self.text}" if self.warning else self.text

    def record(self) -> dict[str, Any]:
        """As it is kept in JSON."""
        return asdict(self) | {"warning": self.warning}


def findings(records: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Return the findings whose `record`s these are."""
    return [Finding(**{name: value for name, value in record.items() if name != "warning"}) for record in records]


def quoted(ids: Iterable[str], most: int = EXAMPLES) -> str:
    """The first ids in quotes.

    >>> quoted(["a", "b", "c"])
    "'a', 'b', …"
    """
    listed = list(ids)
    return ", ".join(map(repr, listed[:most])) + (", …" if len(listed) > most else "")
