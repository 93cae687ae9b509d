"""What a dataset's filters dropped, as the stage tells it; and the estimate of the grid's time, against the grid."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError

SetParams = Callable[[dict[str, Any]], None]
START = 1_500_000_000


def call(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return str(import_module(f"stages.{name}").main())


def bring(project: Path, rows: list[str], n_titles: int) -> dict[str, str]:
    """Write a log and a catalogue of the first items into the project; return the source of both."""
    (project / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    (project / "items.csv").write_text("item_id,title\n" + "".join(f"i{i},Title {i}\n" for i in range(n_titles)))
    return {"kind": "files", "interactions": "log.csv", "items": "items.csv"}


def test_every_loss_is_a_line_and_a_large_one_a_warning(
    project: Path, set_params: SetParams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the catalogue is missing: of 6 x 8 interactions 24 are with unknown items."""
    rows = [f"u{u},i{i},{START + i}" for u in range(6) for i in range(8)]
    set_params({"sources.mine": bring(project, rows, 4) | {"core": 3}, "dataset": "mine"})
    call("download", monkeypatch, "mine")
    capsys.readouterr()
    call("preprocess", monkeypatch, "mine")
    (told,) = capsys.readouterr().out.splitlines()  # what was lost, where the check is not asked
    assert call("check", monkeypatch) == "mine: 1 warning, in metrics/check.json"
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2] == (
        "WARNING (50.0 %): Dropped 24 interactions with 4 items that the catalogue does not list; the log has 'i4', "
        "'i5', …, the catalogue 'i0', 'i1', …."
    )
    assert told == printed[-2]
    written = json.loads((project / "metrics/check.json").read_text())
    assert written["dataset"] == "mine"
    assert [finding["text"] for finding in written["findings"]] == [line.partition(" %): ")[2] or line for line in printed]
    (unknown,) = (finding for finding in written["findings"] if finding["name"] == "unknown_items")
    assert (unknown["count"], unknown["total"], unknown["lost"], unknown["warning"]) == (24, 48, True, True)


def test_items_that_no_model_would_read_are_counted(
    project: Path, set_params: SetParams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 6 x 8 interactions 6 x 6 are for training. A model that reads 3 items and predicts the fourth leaves out 2 a user."""
    rows = [f"u{u},i{(u + i) % 8},{START + i}" for u in range(6) for i in range(8)]
    set_params({"sources.mine": bring(project, rows, 8), "dataset": "mine"})
    for stage in ("download", "preprocess"):
        call(stage, monkeypatch, "mine")
    for history, warns in ((5, False), (3, True)):
        set_params({"train.max_history": history})
        capsys.readouterr()
        assert call("check", monkeypatch) == f"mine: {'1 warning' if warns else 'no warning'}, in metrics/check.json"
        told = [line for line in capsys.readouterr().out.splitlines() if "max_history" in line]
        assert told == warns * [
            "WARNING (33.3 %): Training leaves out 12 interactions of 6 users with more than 4 training items; to use all, set "
            "train.max_history to 5."
        ]


def test_the_order_of_ties_is_a_warning_until_somebody_chooses_it(
    project: Path, set_params: SetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC runs preprocessing again for the choice, since a file on which it depends changes; the sequences stay."""
    rows = [f"u{u},i{i},{START}" for u in range(6) for i in range(5)]
    (project / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    (project / "items.csv").write_text("item_id,title\n" + "".join(f"i{i},Title {i}\n" for i in range(5)))
    mine = {"kind": "files", "interactions": "log.csv", "items": "items.csv"}
    seen = []
    for chosen, warns in (({}, True), ({"ties": "file"}, False)):
        set_params({"sources.mine": mine | chosen, "dataset": "mine"})
        for stage in ("validate", "download", "preprocess"):
            call(stage, monkeypatch, *(["mine"] if stage != "validate" else []))
        assert call("check", monkeypatch) == f"mine: {'1 warning' if warns else 'no warning'}, in metrics/check.json"
        parts = [path.read_bytes() for path in sorted(Path("data/sequences/mine").iterdir())]
        seen.append((parts, Path("data/preprocessing/mine.json").read_bytes()))
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_a_dataset_that_was_not_preprocessed_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"preprocess-tiny\.json is missing; it is made by `dvc repro"):
        call("check", monkeypatch)


def test_the_estimate_counts_what_is_to_be_trained_and_ends_when_nothing_is(
    project: Path, set_params: SetParams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(
        {"train.epochs": 2, "grid.dimensions": {"datasets": ["tiny"], "backbones": ["sasrec"], "adapters": ["base"], "dims": [8]}}
    )
    said = call("check", monkeypatch, "--estimate", "--jobs", "2")
    lines = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if "s an epoch" in line]
    assert lines == ["tiny-sasrec-base dim 16", "tiny-sasrec-spectran dim 16", "tiny-sasrec-base dim 8"]
    assert said.startswith("6 runs, 2 at a time: ")
    for adapter in ("base", "spectran"):
        call("cell", monkeypatch, "tiny", "sasrec", adapter)
    call("cell", monkeypatch, "tiny", "sasrec", "base", "--over", "dims")
    assert call("check", monkeypatch, "--estimate") == "every run of the grid exists; nothing to train"
    with pytest.raises(UserError, match="--jobs is 0"):
        call("check", monkeypatch, "--estimate", "--jobs", "0")
