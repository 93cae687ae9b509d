"""Parcels from the driver to a node and back, with a list as the object store; and errors before a cluster starts."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from pipeline.grid import cluster, node, parcels
from pipeline.grid.cluster import Cluster
from pipeline.grid.node import Parcel, fetch, install, tar_of, unpack
from pipeline.grid.parcels import checksum, pack, path_in_task
from pipeline.grid.tasks import grid_lock
from pipeline.params import Resources

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def small_pieces(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PIECE", 10_000)


def sent(path: Path) -> Parcel:
    target = path_in_task(path)
    return pack(path, target, checksum(path, target), lambda piece: piece.copy())


def content(directory: Path) -> dict[str, bytes]:
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_a_spectrum_arrives_in_pieces_as_it_was(tmp_path: Path) -> None:
    spectrum = Path("data/spectrum/tiny/random")
    parcel = sent(spectrum)
    assert len(parcel.pieces) > 2
    assert sum(piece.nbytes for piece in parcel.pieces) == parcel.bytes
    assert fetch(parcel, tmp_path / "inputs", np.asarray)
    install(parcel, tmp_path / "inputs", tmp_path / "task")
    assert content(tmp_path / "task/data/spectrum/tiny/random") == content(spectrum)


def test_files_that_dvc_links_to_its_cache_arrive_as_files(tmp_path: Path) -> None:
    (tmp_path / "cached").write_bytes(b"numbers")
    Path("data/sequences/linked").mkdir()
    Path("data/sequences/linked/file").symlink_to(tmp_path / "cached")
    fetch(parcel := sent(Path("data/sequences/linked")), tmp_path / "inputs", np.asarray)
    (tmp_path / "cached").unlink()
    assert (tmp_path / "inputs" / parcel.checksum / "linked/file").read_bytes() == b"numbers"


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


def test_a_checksum_changes_with_the_content_and_the_path() -> None:
    here, there = Path("models"), Path("pipeline")
    here.mkdir()
    (here / "a.py").write_text("1")
    first = checksum(here, here)
    (here / "__pycache__").mkdir()
    (here / "__pycache__/a.pyc").write_text("made by importing")
    assert checksum(here, here) == first
    assert checksum(here, there) != first
    (here / "a.py").write_text("2")
    assert checksum(here, here) != first
    spectrum = Path("data/spectrum/tiny/random")
    first = checksum(spectrum, spectrum)
    (spectrum / "sidecar.json").write_text("{}")
    assert checksum(spectrum, spectrum) != first


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


def test_of_two_grids_on_one_scratch_the_second_is_refused_until_the_first_is_gone() -> None:
    holds = "from pipeline.grid.tasks import grid_lock\nwith grid_lock():\n print(flush=True)\n input()"
    command = [sys.executable, "-c", holds]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}) as first:
        assert first.stdout
        first.stdout.readline()
        with pytest.raises(UserError, match=f"another grid is running in .*process {first.pid} on "), grid_lock():
            pass
        first.kill()
    with grid_lock():
        pass


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install '\.\[ray\]'"):
        Cluster(Resources())


def test_gpus_come_in_shares_of_one_or_whole() -> None:
    assert Resources(gpus=0.25).gpus == 0.25
    assert Resources(gpus=2).gpus == 2
    with pytest.raises(UserError, match="params: gpus: expected a fraction of one GPU, or a whole number of GPUs"):
        Resources.parse({"gpus": 1.5}, "params")


# -------------------------------------------------------------------------------------------------- where a node may write


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
