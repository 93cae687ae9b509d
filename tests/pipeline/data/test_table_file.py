"""What is wanted of a file, and the numbers of its rows."""

from pathlib import Path

import pytest

from common.errors import UserError
from pipeline.data.table_file import FileRead, Wanted


def test_a_missing_column_is_named_with_the_option_that_names_it() -> None:
    """A catalogue's columns are named in another option than a log's."""
    path = Path("items.csv")
    for option in ("columns", "item_columns"):
        with pytest.raises(UserError) as caught:
            Wanted({"title": "title"}, {}, option=option).resolve(path, ["sku", "name"])
        assert str(caught.value) == f"items.csv: column 'title' is missing; valid: name, sku; name it in `{option}`"
        with pytest.raises(UserError) as caught:
            Wanted({"title": "nam"}, {}, option=option).resolve(path, ["sku", "name"])
        assert str(caught.value) == (
            f"items.csv: column 'nam' is missing, which `{option}` names for title; did you mean 'name'?"
        )
        with pytest.raises(UserError, match="valid: mean_price, sku; name it in"):
            Wanted({"title": "title"}, {}, option=option).resolve(path, ["sku", "mean_price"])


def test_rows_are_numbered_without_the_bad_and_the_blank_ones() -> None:
    """Rows 2 to 9, of which 4 and 5 are bad and 2 and 8 blank."""
    file = FileRead(Path("a.csv"), first_row=2, bad={5: "x", 4: "y"}, blank=lambda: [2, 8])
    assert [file.number(index) for index in range(4)] == [3, 6, 7, 9]
