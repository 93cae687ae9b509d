"""What is said of equal timestamps: the rule, the shares, and a warning where the order is one that can be learned."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import atomic_directory, write_json
from pipeline.report.ties import ties_of


def write(directory: Path, ties: str, **shares: float) -> None:
    with atomic_directory(directory, {"preprocess": {"ties": ties}}) as partial:
        write_json(partial / "statistics.json", {"tied": shares})


SHARES: dict[str, Any] = {"steps": 0.188, "validation": 0.246, "test": 0.236}


@pytest.mark.parametrize(
    ("ties", "rule"),
    [
        ("item", "are ordered by item id"),
        ("shuffled", "shuffled by a hash of user and item"),
        ("file", "keep the source's order"),
    ],
)
def test_the_rule_and_the_shares_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ties: str, rule: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("data/sequences/shop"), ties, **SHARES)
    found = ties_of("shop", "Shop")
    assert found
    assert found.text.startswith("Shop: ")
    assert rule in found.text
    for share in ("18.8 % of the training items after a user's first", "24.6 % of the validation", "23.6 % of the test items"):
        assert share in found.text
    assert found.learnable == (ties == "item"), "only that order is the same for every user"
    assert ("a model that knows IDs can learn it" in found.text) == found.learnable


def test_nothing_is_said_of_a_log_without_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("data/sequences/shop"), "item", steps=0.001, validation=0.0, test=0.004)
    assert ties_of("shop", "Shop") is None
    write(Path("data/sequences/shop"), "item")
    assert ties_of("shop", "Shop") is None, "as of artifacts that were made before the shares were counted"
