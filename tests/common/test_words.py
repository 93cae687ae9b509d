"""Numbers and names in sentences."""

from common.words import capitalised, enumeration, plural


def test_a_noun_has_an_s_unless_there_is_one_of_it() -> None:
    assert [plural(count, "user") for count in (0, 1, 2, 2000)] == ["0 users", "1 user", "2 users", "2,000 users"]


def test_names_are_joined_by_commas_and_one_and() -> None:
    assert [enumeration(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def test_only_the_first_letter_becomes_a_capital() -> None:
    assert capitalised("with SpecTran") == "With SpecTran"
    assert capitalised("") == ""
