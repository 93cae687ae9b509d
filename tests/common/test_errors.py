"""The text of a user's error: one line of limited length, which names the nearest valid name."""

from common.errors import LONGEST, UserError, did_you_mean, first_line


def test_a_message_is_one_printable_line() -> None:
    assert str(UserError("dataset 'a\nb\0' \u202e")) == r"dataset 'a\nb\x00' \u202e"
    assert str(UserError("café, 日本語")) == "café, 日本語", "letters of any language are shown"


def test_the_middle_of_a_long_message_is_left_out() -> None:
    text = str(UserError(f"params.yaml: {'x' * 5000}; delete it"))
    assert text.startswith("params.yaml: xxx")
    assert text.endswith("xxx; delete it")
    assert len(text) == LONGEST + len(" … ")
    assert str(UserError("x" * LONGEST)) == "x" * LONGEST


def test_an_error_without_text_is_named_by_its_class() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(MemoryError()) == first_line(MemoryError("\n")) == "MemoryError"


def test_without_a_similar_name_all_are_listed_in_order() -> None:
    assert did_you_mean("hstuu", ["sasrec", "hstu"]) == "; did you mean 'hstu'?"
    assert did_you_mean("gru4rec", ["sasrec", "hstu"]) == "; valid: hstu, sasrec"
    assert did_you_mean("gru4rec", []) == "; valid: none"
