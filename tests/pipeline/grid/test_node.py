"""What a node fetches, installs and sends back, and where it may write."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.grid import node
from pipeline.grid.node import fetch, install, tar_of, unpack
from tests.pipeline.grid.conftest import content, sent

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_tasks_of_one_node_send_for_a_parcel_once(tmp_path: Path) -> None:
    parcel = sent(Path("data/sequences/tiny"))
    asked: list[int] = []

    def slowly(piece: np.ndarray) -> np.ndarray:
        asked.append(1)
        threading.Event().wait(0.02)
        return piece

    outcomes: list[bool] = []
    tasks = [threading.Thread(target=lambda: outcomes.append(fetch(parcel, tmp_path, slowly))) for _ in range(4)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert sorted(outcomes) == [False, False, False, True]
    assert len(asked) == len(parcel.pieces)


def test_a_parcel_whose_sending_was_cut_off_is_sent_for_again(tmp_path: Path) -> None:
    parcel = sent(Path("data/sequences/tiny"))

    def breaks(piece: np.ndarray) -> np.ndarray:
        if piece is parcel.pieces[-1]:
            raise OSError("the node is lost")
        return piece

    with pytest.raises(OSError, match="the node is lost"):
        fetch(parcel, tmp_path, breaks)
    assert fetch(parcel, tmp_path, np.asarray)
    assert content(tmp_path / parcel.checksum / "tiny") == content(Path("data/sequences/tiny"))


def test_an_input_in_scratch_is_the_tasks_own_copy(tmp_path: Path) -> None:
    """A task may write to its copy of a tuning's directory; the next task gets the original."""
    tuning = Path(".scratch/tuning/one").absolute()
    tuning.mkdir(parents=True)
    (tuning / "trials.csv").write_text("1")
    fetch(parcel := sent(tuning), tmp_path / "inputs", np.asarray)
    for task in ("first", "second"):
        install(parcel, tmp_path / "inputs", tmp_path / task)
        trials = tmp_path / task / ".scratch/tuning/one/trials.csv"
        assert trials.read_text() == "1"
        trials.write_text("2")
        install(parcel, tmp_path / "inputs", tmp_path / task)
        assert trials.read_text() == "2", "a task that was cut off goes on with its own"


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    result = tar_of(Path("data/spectrum/tiny/random"))
    unpack([result], tmp_path / "back")
    assert content(tmp_path / "back") == content(Path("data/spectrum/tiny/random"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, and where a node's scratch will lie in it."""
    monkeypatch.delenv("SPECTRAN_SCRATCH", raising=False)
    monkeypatch.setattr(node.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"spectran-{os.getuid()}"


def test_a_node_makes_a_scratch_that_only_its_user_can_write_to(temporary: Path) -> None:
    assert node.node_scratch() == temporary
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert node.node_scratch() == temporary


@pytest.mark.parametrize("kind", ["link", "0777", "0770", "file", "other owner"])
def test_a_node_refuses_a_scratch_that_others_can_write_to(temporary: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "link":
        (temporary.parent / "elsewhere").mkdir(mode=0o700)
        temporary.symlink_to("elsewhere")
    elif kind == "file":
        temporary.touch(mode=0o600)
    else:
        temporary.mkdir(mode=0o700)
    if kind.startswith("0"):
        temporary.chmod(int(kind, 8))
    if kind == "other owner":
        monkeypatch.setattr(node.os, "getuid", lambda: 54321)
        temporary.rename(temporary.with_name("spectran-54321"))
    with pytest.raises(OSError, match=r"spectran-\d+|File exists"):
        node.node_scratch()


def test_a_scratch_that_the_user_names_is_the_users_affair(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRAN_SCRATCH", str(temporary))
    assert node.node_scratch() == temporary
    assert not temporary.exists()
