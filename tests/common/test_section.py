"""Sections of parameters refuse what pydantic would convert, in one line."""

from typing import Any

import pytest
from pydantic import Field, ValidationError

from common.errors import UserError
from common.section import Section


class Options(Section):
    rate: float = Field(0.1, gt=0)
    count: int = 1
    counts: list[int] = Field(default_factory=list)
    cached: bool = False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rat": 1}, "here: unknown parameter 'rat'; did you mean 'rate'?"),
        ({"count": True}, "here: count: expected a number, found true"),
        ({"counts": [1, False]}, "here: counts: expected a number, found false"),
        ({"count": 2**63}, "here: count: expected at most 9223372036854775807, found 9223372036854775808"),
        ({"rate": float("nan")}, "here: rate: Input should be a finite number, found nan"),
        ({"rate": -1, "count": "x"}, "here: rate: Input should be greater than 0, found -1 (and 1 more)"),
        (["rate"], "here: Input should be a valid dictionary or instance of Options, found ['rate']"),
    ],
)
def test_a_mistake_is_one_line_with_place_and_value(values: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Options.parse(values, "here")
    assert str(caught.value) == message


def test_a_section_keeps_its_values() -> None:
    options = Options.parse({"count": 2**63 - 1, "cached": True}, "here")
    assert (options.rate, options.count, options.cached) == (0.1, 2**63 - 1, True)
    with pytest.raises(ValidationError, match="frozen"):
        options.count = 2
