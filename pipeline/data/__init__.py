"""From raw files to sequences: sources and preprocessing.

A new kind of source is one file in `pipeline/data/sources/`, one line in this registry and a section of `sources:` in
`params.yaml`. Importing this package does not import polars.
"""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from common.registry import Registry
from common.section import Section

Ties = Literal["item", "shuffled", "file"]
Split = Literal["leave_one_out", "global"]


def moment(value: Any) -> Any:
    """Return a point in time as a whole number, or as ISO 8601 text; raise ValueError for text that is neither."""
    if isinstance(value, date):  # a datetime too: YAML reads both
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        if re.fullmatch(r"-?\d+", value):
            return int(value)
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"expected a date such as 2014-01-31, or a number such as the log's times, found {value!r}"
            ) from None
    return value


def out_of_order(earlier: int | str, later: int | str) -> bool:
    """Whether `earlier` cannot be before `later`, as far as it can be told without the log, whose unit numbers may have.

    >>> out_of_order("2014-01-02", "2014-01-01T23:00:00-05:00"), out_of_order(1_600_000_000, 1_500_000_000)
    (False, True)
    >>> out_of_order(1_500_000_000_000, 1_600_000_000), out_of_order("2014-01-02", 7)
    (False, False)
    """
    if isinstance(earlier, str) and isinstance(later, str):
        return in_utc(earlier) >= in_utc(later)
    if isinstance(earlier, int) and isinstance(later, int):
        alike = abs(len(str(earlier)) - len(str(later))) <= 1  # perhaps milliseconds and seconds otherwise
        return alike and earlier >= later
    return False


def in_utc(text: str) -> datetime:
    """Return the point in time of an ISO 8601 text, in UTC unless it names a zone."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


Moment = Annotated[int | str, BeforeValidator(moment)]
PREPROCESSING = {
    "core",
    "cap",
    "ties",
    "split",
    "valid_from",
    "test_from",
    "min_rating",
}  # options of a source that are applied after its download


class Source(Section):
    """The base class of what `sources.<dataset>` in `params.yaml` holds. Each kind has its own, in its own file."""

    kind: str
    core: int | None = Field(None, ge=3, description="instead of `preprocess.core`, which holds if this is empty")
    cap: int | None = Field(None, ge=4, description="instead of `preprocess.cap`, which holds if this is empty")
    ties: Ties | None = Field(None, description="instead of `preprocess.ties`, which holds if this is empty")
    split: Split | None = Field(None, description="instead of `preprocess.split`, which holds if this is empty")
    valid_from: Moment | None = Field(None, description="instead of `preprocess.valid_from`, which holds if this is empty")
    test_from: Moment | None = Field(None, description="instead of `preprocess.test_from`, which holds if this is empty")

    def of_download(self) -> dict[str, Any]:
        """The options that decide what is downloaded, without those of preprocessing."""
        return self.model_dump(exclude=PREPROCESSING)

    def own_files(self) -> dict[str, Path]:
        """The user's files that the dataset is made of, by the name under which they are recorded.

        Raises UserError if one is missing.
        """
        return {}

    @property
    def known_items(self) -> int | None:
        """The number of items, where it is known before anything is fetched; `make doctor` estimates the disk by it."""
        return None


SOURCES = Registry(
    "kind of source",
    "pipeline.data.sources",
    {
        "amazon2014": "Amazon 2014",
        "demo": "Built-in demo",
        "files": "Your own files",
    },
)
