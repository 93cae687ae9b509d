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
