"""The form of names."""

import pytest

from common.errors import UserError
from common.names import check_form, check_name

HOSTILE = [
    "../..",
    "../../../../victim",
    "..",
    ".",
    "",
    "/",
    "-rf",
    "x; touch PWNED; #",
    "$(touch PWNED)",
    "`touch PWNED`",
    "'; touch PWNED; '",
    '"; touch PWNED; "',
    "x\ntouch PWNED\n#",
    "x\n",
    "x && touch PWNED",
    "my shop",
    "my.shop",
    "shop/eu",
    "${encoder}",
    "a$\\frac{$",
    "<img src=x onerror=alert(1)>",
    "caf\u00e9",
    "\u202etxt",
    "null\0byte",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_has_no_valid_form(name: str) -> None:
    with pytest.raises(UserError, match="is not a valid name") as refused:
        check_form("dataset", name)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="is not a valid name"):
        check_name("dataset", name, {name: 1})


@pytest.mark.parametrize("name", ["demo", "minilm-cls", "llm_esr", "007", "A", "qwen3-embedding-06b"])
def test_an_ordinary_name_is_accepted(name: str) -> None:
    assert check_form("dataset", name) == name
