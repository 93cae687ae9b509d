"""Input of any content is read, or refused in one line. A sample of `make fuzz`."""

from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from tests.faults import fuzz


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_whatever_is_read_is_read_or_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECTRAN_SCRATCH", raising=False)
    fuzz.published_folder()
    strategy, read, share = fuzz.TARGETS[name]
    counts: Counter[str] = Counter()
    assert fuzz.fuzz(name, strategy, read, int(200 * share), 1, counts) is None
    assert counts
    if name == "own files":
        assert counts["own files: read"] > sum(counts.values()) / 3, "most inputs are to get beyond the first check"
    if name not in fuzz.RARELY_VALID:
        assert counts[f"{name}: read"], "what lies behind the first check is tried too"


@pytest.mark.parametrize(("suffix", "form"), sorted(set(fuzz.FORMS)))
def test_what_the_fuzzer_changes_is_read_whole_in_every_form(
    suffix: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, times in enumerate(fuzz.TIMES):
        ids = fuzz.IDS[number % len(fuzz.IDS)]
        given = {"forms": [(suffix, form)] * 2, "ids": (ids, ids), "times": times, "changes": [], "options": {}, "preprocess": {}}
        found = fuzz.read_own_files(given | {"template": "{title} ({price})"})
        items = found.items["item_id"].to_list()
        assert sorted(items) == sorted(str(ids(item)) for item in range(fuzz.ITEMS))
        assert found.items["text"][items.index(str(ids(3)))] == "Title & 3, «x» (1.5)"
        (first,) = found.users.filter(user_id=str(ids(1)))["items"].to_list()
        assert found.users.height == fuzz.USERS
        assert [items[item] for item in first] == [str(ids(1 + item)) for item in range(fuzz.EACH)]


@pytest.mark.parametrize(
    "fault",
    [
        lambda taken: {}["missing"],
        lambda taken: pl.DataFrame({"a": [1]}).select("b"),
        lambda taken: (_ for _ in ()).throw(BaseException("a panic")),
    ],
)
def test_a_traceback_is_found(fault: object) -> None:
    found = fuzz.fuzz("it", fuzz.SCALAR, fault, 5, 1, Counter())
    assert found
    assert "Traceback" in found
    assert "Failing test case" in found
