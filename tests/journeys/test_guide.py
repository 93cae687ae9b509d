"""Every command that the guide shows is run by a journey."""

from pathlib import Path

from tests.guide import Step, check, sections

HERE = Path(__file__).parent


def test_every_section_with_commands_is_followed_by_a_journey() -> None:
    journeys = "".join(file.read_text() for file in HERE.glob("*.py") if file.name != "test_guide.py")
    assert len(sections()) > 10
    assert [heading for heading in sections() if f'"{heading}"' not in journeys] == []


def test_numbers_may_differ_and_words_may_not() -> None:
    shown = Step("ben", "dvc push", ["…", "38 files pushed to 0a1b2c3d"])
    check(shown, "warning\n7 files pushed to ffff0000\n")
    for printed in ("38 files fetched", "", "pushed"):
        try:
            check(shown, printed)
        except AssertionError:
            continue
        raise ValueError(f"{printed!r} passed for what the guide shows")
