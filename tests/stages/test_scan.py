"""The checksums of own files: another content is another record, and nothing else is."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from stages import download, scan, validate

SetParams = Callable[[dict[str, Any]], None]
RECORD = Path("data/sources/files/mine.json")
MINE = {"kind": "files", "interactions": "logs/*.csv", "items": "items.csv"}


@pytest.fixture
def own(project: Path, set_params: SetParams, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["scan"])
    (project / "logs").mkdir()
    (project / "logs/1.csv").write_text("user_id,item_id,timestamp\n")
    (project / "items.csv").write_text("item_id,title\n")
    set_params({"sources.mine": MINE})
    return project


def test_a_changed_or_added_file_and_an_option_of_the_download_change_the_record(own: Path, set_params: SetParams) -> None:
    assert scan.main() == "2 files of 1 dataset"
    first = RECORD.read_text()
    assert set(json.loads(first)["files"]) == {"logs/1.csv", "items.csv"}
    (own / "logs/1.csv").touch()
    set_params({"sources.mine.cap": 5, "sources.mine.min_rating": 2, "sources.mine.ties": "item", "sources.mine.core": 9})
    scan.main()
    assert RECORD.read_text() == first, "the same content, and options of preprocessing alone"
    seen = {first}
    for change in (
        lambda: (own / "items.csv").write_text("item_id,title\na,b\n"),
        lambda: (own / "logs/2.csv").write_text("user_id,item_id,timestamp\n"),
        lambda: set_params({"sources.mine.time": "s"}),
    ):
        change()
        scan.main()
        assert RECORD.read_text() not in seen
        seen.add(RECORD.read_text())


def test_files_that_differ_from_those_recorded_are_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A colleague's older log, or one part of several that is missing, would otherwise change the dataset without a word."""
    scan.main()
    scan.main()
    assert "recorded" not in capsys.readouterr().out
    (own / "items.csv").write_text("item_id,title\na,b\n")
    (own / "logs/1.csv").rename(own / "logs/2.csv")
    scan.main()
    assert capsys.readouterr().out == (
        "scan: mine: changed since they were recorded: items.csv; not recorded before: logs/2.csv; recorded, but not here: "
        "logs/1.csv; the dataset is made of the files that are here\n"
    )


@pytest.mark.parametrize("damaged", ["<<<<<<< HEAD\n", "[]", '{"source": {}}'])
def test_a_damaged_record_is_written_anew_where_the_files_are_here_and_named_where_not(own: Path, damaged: str) -> None:
    """As after a merge with a conflict: git tracks the record."""
    scan.main()
    first = RECORD.read_text()
    RECORD.write_text(damaged)
    (own / "items.csv").rename(own / "away.csv")
    with pytest.raises(UserError, match=rf"^{re.escape(str(RECORD))} "):
        scan.main()
    (own / "away.csv").rename(own / "items.csv")
    assert scan.main() == "2 files of 1 dataset"
    assert RECORD.read_text() == first


def test_an_absolute_path_is_recorded_as_it_is_written(
    own: Path, tmp_path_factory: pytest.TempPathFactory, set_params: SetParams
) -> None:
    """It is the same in every checkout of a machine; a path relative to the checkout is not."""
    shared = tmp_path_factory.mktemp("shared")
    (own / "logs/1.csv").rename(shared / "1.csv")
    set_params({"sources.mine.interactions": f"{shared}/*.csv"})
    scan.main()
    assert set(json.loads(RECORD.read_text())["files"]) == {f"{shared}/1.csv", "items.csv"}


def test_with_a_remote_the_advice_is_what_a_colleague_has(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No option skips `scan`, so without the record there must be one; `download` is skipped once the raw files are here."""
    (own / "items.csv").unlink()
    for module in (scan, download):
        monkeypatch.setattr(module, "has_remote", lambda: True)
    with pytest.raises(
        UserError, match=r"; whoever pushed the dataset can commit data/sources/files/mine\.json, and the files need"
    ):
        scan.main()
    monkeypatch.setattr(sys, "argv", ["download", "mine"])
    with pytest.raises(UserError, match=r"; if a colleague pushed it: `dvc pull data/raw/mine`, then the same command$"):
        download.main()


def test_where_the_files_are_not_here_the_record_stays_for_the_same_options_only(
    own: Path, set_params: SetParams, capsys: pytest.CaptureFixture[str]
) -> None:
    scan.main()
    first = RECORD.read_text()
    (own / "items.csv").unlink()
    assert scan.main() == "0 files of 1 dataset"
    assert "items.csv: no such file; what was recorded of its files stays" in capsys.readouterr().out
    assert RECORD.read_text() == first
    set_params({"sources.mine.time": "s"})
    where = r"items\.csv: no such file \(its options: sources\.mine in params\.yaml, to which -S adds\)$"
    with pytest.raises(UserError, match=where):
        scan.main()
    RECORD.unlink()
    with pytest.raises(UserError, match=where):
        scan.main()


def test_a_download_that_fails_says_where_the_options_are(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that an earlier command wrote there is in force, though the last one does not name it."""
    monkeypatch.setattr(sys, "argv", ["download", "mine"])
    with pytest.raises(UserError, match=r"no row was found below the header \(its options: sources\.mine in params\.yaml, to"):
        download.main()


def test_a_dataset_that_is_no_longer_listed_loses_its_record(own: Path, set_params: SetParams) -> None:
    scan.main()
    set_params({"sources.mine": {"kind": "demo"}})
    assert scan.main() == "0 files of 0 datasets"
    assert not RECORD.exists()


def test_options_of_one_dataset_change_its_files_alone(own: Path, set_params: SetParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC compares these files: what stays the same is not done again."""

    def written() -> dict[str, str]:
        validate.main()
        return {
            str(file): file.read_text()
            for folder in ("preprocessing", "sources")
            for file in Path("data", folder).rglob("*.json")
        }

    before = written()
    assert {"data/preprocessing/mine.json", "data/preprocessing/tiny.json", "data/sources/demo/tiny.json"} <= set(before)
    for change, expected in (
        ({"sources.tiny.cap": 7}, {"data/preprocessing/tiny.json"}),
        ({"templates.demo": "{title} {brand}"}, {"data/preprocessing/demo.json"}),
        ({"sources.mine.min_rating": 3}, {"data/preprocessing/mine.json"}),
        ({"sources.tiny.items": 130}, {"data/sources/demo/tiny.json"}),
    ):
        set_params(change)
        after = written()
        assert {name for name in after if after[name] != before.get(name)} == expected
        before = after
    set_params({"preprocess.cap": 50})
    after = written()
    assert "data/preprocessing/tiny.json" not in {name for name in after if after[name] != before[name]}, "it has its own cap"
    assert json.loads(after["data/preprocessing/mine.json"]) == {
        "preprocess": {"core": 5, "cap": 50, "ties": "file", "min_rating": 3.0},
        "template": "{title}",
    }
