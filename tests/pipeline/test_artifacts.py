"""Artifacts are written whole or not at all, and say what made them."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import UserError
from pipeline import artifacts
from pipeline.artifacts import (
    added_files,
    atomic_directory,
    atomic_file,
    check_seal,
    fingerprint,
    main_checkout,
    read_json,
    scratch,
    sealed_file,
    sha256,
    verify,
    write_json,
)

ROOT = Path(__file__).parents[2]


class StopError(Exception):
    """Raised in the middle of writing."""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories are replaced inside the current project only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECTRAN_SCRATCH", raising=False)


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt, OSError])
def test_a_file_keeps_its_old_content_where_writing_fails(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a" / "metrics.json"
    write_json(target, {"old": 1})
    before = tree(tmp_path)
    with pytest.raises(error), atomic_file(target) as partial:
        partial.write_text("half")
        raise error
    assert tree(tmp_path) == before


def test_nothing_appears_where_writing_a_new_file_fails(tmp_path: Path) -> None:
    with pytest.raises(StopError), atomic_file(tmp_path / "a" / "new.json") as partial:
        partial.write_text("half")
        raise StopError
    assert tree(tmp_path) == {}


def test_a_file_is_not_visible_before_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new.json"
    with atomic_file(target) as partial:
        partial.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert target.stat().st_mode & 0o777 == 0o644


def test_replacing_a_link_into_a_cache_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    for kind, link in (("hard", os.link), ("symbolic", os.symlink)):
        cached, target = tmp_path / f"cache-{kind}", tmp_path / f"{kind}.json"
        cached.write_text("cached")
        cached.chmod(0o444)
        link(cached, target)
        write_json(target, {"new": 1})
        assert cached.read_text() == "cached"
        assert cached.stat().st_mode & 0o777 == 0o444
        assert json.loads(target.read_text()) == {"new": 1}
        assert not target.is_symlink()


def test_a_directory_of_links_into_a_cache_is_replaced_and_the_cache_stays(tmp_path: Path) -> None:
    cached = tmp_path / "cached"
    cached.write_text("cached")
    cached.chmod(0o444)
    target = tmp_path / "data/raw/demo"
    target.mkdir(parents=True)
    os.link(cached, target / "file")
    with atomic_directory(target) as directory:
        (directory / "file").write_text("new")
    assert cached.read_text() == "cached"
    assert tree(target) == {"file": b"new"}


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
def test_a_directory_stays_as_it_was_where_writing_fails(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "data/raw/demo"
    with atomic_directory(target, {"made": "first"}) as directory:
        (directory / "file").write_text("old")
    before = tree(tmp_path)
    with pytest.raises(error), atomic_directory(target, {"made": "second"}) as directory:
        (directory / "file").write_text("half")
        (directory / "more").write_text("half")
        raise error
    assert tree(tmp_path) == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["raw"]


def test_a_kill_right_after_a_new_directory_is_in_place_leaves_nothing_to_tidy_up(tmp_path: Path) -> None:
    """Who finds the directory in place may never write there again, and so never remove what is left."""
    script = (
        "import os, signal\nfrom pathlib import Path\nfrom pipeline.artifacts import atomic_directory\nreplace = Path.replace\n"
        "Path.replace = lambda *paths: (replace(*paths), os.kill(os.getpid(), signal.SIGKILL))\n"
        "with atomic_directory(Path('data/raw/demo')) as directory:\n    (directory / 'file').touch()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert tree(tmp_path) == {"data/raw/demo/file": b""}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["raw"]


def test_several_that_replace_a_directory_at_once_leave_one_of_theirs_whole(tmp_path: Path) -> None:
    target = tmp_path / "data/raw/demo"

    def replace_often(name: str) -> None:
        for _ in range(50):
            with atomic_directory(target, {"made": name}) as directory:
                (directory / name).touch()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(replace_often, "abcd"))
    verify(target, "download")
    assert len(list(target.iterdir())) == 2
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["raw"]


def test_a_directory_is_replaced_whole_without_leftovers_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "data/raw/demo"
    for name in ("first", "second"):
        with atomic_directory(target) as directory:
            (directory / name).touch()
    assert [path.name for path in target.iterdir()] == ["second"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_while_a_directory_is_written_its_parent_lists_only_what_is_finished(tmp_path: Path) -> None:
    """grid/cells is a dependency: DVC must not see a half-written cell in it."""
    cells = tmp_path / "grid/cells"
    with atomic_directory(cells / "demo-sasrec-base"):
        assert list(cells.iterdir()) == []


def test_a_folder_on_another_disk_takes_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`data` is a link to another disk: nothing can be renamed from the project's root into it."""
    shared = Path("/dev/shm")  # noqa: S108 - a disk in memory
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk")
    monkeypatch.chdir(tmp_path)
    with tempfile.TemporaryDirectory(dir=shared) as disk:
        Path("data").symlink_to(disk)
        for content in ("old", "new"):
            with atomic_directory(Path("data/preprocessing"), {}) as directory:
                (directory / "file").write_text(content)
        assert (Path(disk) / "preprocessing/file").read_text() == "new"
        assert [path.name for path in Path(disk).iterdir()] == ["preprocessing"]
        assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_volume_of_the_same_disk_takes_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bind mount has the device of its disk, and yet nothing can be renamed into it from outside."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if ("data" in self.parts) != ("data" in Path(target).parts):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    monkeypatch.setattr(Path, "replace", refused)
    artifacts._can_rename.cache_clear()
    with atomic_directory(Path("data/preprocessing"), {}) as directory:
        (directory / "file").write_text("new")
    assert (tmp_path / "data/preprocessing/file").read_text() == "new"
    assert [path.name for path in tmp_path.rglob("*.partial")] == []
    artifacts._can_rename.cache_clear()


def test_the_sidecar_holds_what_made_it_and_a_checksum_of_every_file(tmp_path: Path) -> None:
    target = tmp_path / "data/x"
    with atomic_directory(target, {"dataset": "demo"}) as directory:
        (directory / "deep").mkdir()
        (directory / "b.txt").write_bytes(b"abc")
        (directory / "deep/a.txt").write_bytes(b"")
    content = json.loads((target / "sidecar.json").read_text())
    assert len(content.pop("checksum")) == 32
    assert content == {
        "dataset": "demo",
        "files": {
            "b.txt": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "deep/a.txt": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        },
    }


def test_a_checksum_is_sha256(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    assert sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_fingerprint_is_stable_and_changes_with_every_part() -> None:
    parts = [{"b": 1, "a": [1, 2]}, "é", 0.1, None]
    assert fingerprint(*parts) == fingerprint({"a": [1, 2], "b": 1}, "é", 0.1, None)
    assert fingerprint(*parts) == "b11f573d574cc771191f18e57300429b", "finished runs are found again by another version of Python"
    others = [fingerprint({"b": 1, "a": [2, 1]}, *parts[1:]), fingerprint(*parts[:-1]), fingerprint(*parts[:-1], 0)]
    assert len({fingerprint(*parts), *others}) == 4


def test_json_keeps_its_order_and_its_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": "é", "a": 1})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "b": "é",\n  "a": 1\n}\n'


@pytest.mark.parametrize(("content", "says"), [(None, "is missing; it is made by the svd stage"), (b"{", "is not valid JSON")])
def test_json_that_cannot_be_read_names_the_stage_that_makes_it(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_json(file, "the svd stage")


def test_where_nothing_can_be_written_the_error_has_a_path_and_nothing_is_left(tmp_path: Path) -> None:
    """A regular file where a folder should be stops root too, whom permissions do not."""
    (tmp_path / "data").write_text("a file")
    for writer in (atomic_file, atomic_directory):
        with pytest.raises(OSError, match="data") as caught, writer(tmp_path / "data/raw/demo"):
            raise AssertionError("must not be entered")
        assert caught.value.errno
    assert tree(tmp_path) == {"data": b"a file"}


def test_the_main_checkout_is_found_from_dvcs_temporary_workspaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECTRAN_SCRATCH", raising=False)
    workspace = tmp_path / ".dvc/tmp/exps/tmpabc"
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    assert main_checkout() == tmp_path
    assert scratch() == tmp_path / ".scratch"
    monkeypatch.chdir(tmp_path)
    assert main_checkout() == tmp_path
    assert scratch() == tmp_path / ".scratch"


def test_scratch_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRAN_SCRATCH", str(tmp_path / "elsewhere"))
    assert scratch() == tmp_path / "elsewhere"
    monkeypatch.setenv("SPECTRAN_SCRATCH", "relative")
    assert scratch().is_absolute()


# ----------------------------------------------------------------------------------------------------- what is read is checked


def test_an_artifact_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    """The same bytes, sidecar and all; a copy of the whole project elsewhere is as good as the project."""
    with atomic_directory(Path("data/x/first"), {}) as directory:
        (directory / "file").write_text("content")
    verify(Path("data/x/first"), "cmd")
    shutil.copytree("data/x/first", "data/x/second")
    with pytest.raises(UserError, match=r"data/x/second/sidecar.json is damaged or belongs elsewhere.*cmd makes it again"):
        verify(Path("data/x/second"), "cmd")
    shutil.copytree("data", tmp_path / "elsewhere/data")
    with contextlib.chdir(tmp_path / "elsewhere"):
        verify(Path("data/x/first"), "cmd")


def test_only_the_named_files_are_looked_at_and_each_must_be_listed() -> None:
    target = Path("data/x/y")
    with atomic_directory(target, {}) as directory:
        (directory / "read").write_text("content")
        (directory / "other").write_text("content")
    (target / "other").write_text("changed")
    (target / "new").write_text("content")
    assert set(verify(target, "cmd", ["read"])["files"]) == {"read", "other"}
    with pytest.raises(UserError, match="data/x/y/other is damaged"):
        verify(target, "cmd")
    with pytest.raises(UserError, match="data/x/y/new is not a file of this artifact"):
        verify(target, "cmd", ["new"])


def test_files_that_are_added_count_once_all_are_there() -> None:
    """Cut off in between, the artifact is what it was before, without the files that were being replaced."""
    target = Path("data/x/y")
    with atomic_directory(target, {"run": 1}) as directory:
        (directory / "weights").write_text("w")
        (directory / "ranks").write_text("old")
    with pytest.raises(StopError), added_files(target, ["ranks"], "cmd"):
        (target / "ranks").write_text("half")
        raise StopError
    assert set(verify(target, "cmd")["files"]) == {"weights"}
    with added_files(target, ["ranks"], "cmd"):
        (target / "ranks").write_text("new")
    sidecar = verify(target, "cmd")
    assert (sidecar["run"], set(sidecar["files"])) == (1, {"weights", "ranks"})


def test_a_sealed_file_ends_with_a_checksum_of_its_place_and_content(tmp_path: Path) -> None:
    file = tmp_path / ".scratch/states/state"
    with sealed_file(file) as partial:
        partial.write_bytes(b"content")
    digest = hashlib.sha256(b"scratch:states/statecontent").hexdigest()
    assert file.read_bytes() == b"content" + f"\n# sha256 {digest}\n".encode()
    check_seal(file, "cmd")
    for content in (b"", b"content", b"Content" + file.read_bytes()[7:], file.read_bytes()[:-1], file.read_bytes() + b"\n"):
        other = file.with_name("state")
        other.write_bytes(content)
        with pytest.raises(UserError, match="state is damaged, its checksum is not that at its end"):
            check_seal(other, "cmd")
    file.unlink()
    with pytest.raises(UserError, match="state is missing"):
        check_seal(file, "cmd")


# ------------------------------------------------------------------------------------------------- what a killed process leaves

LEAVES = """
import os, signal, sys
from pathlib import Path
from pipeline.artifacts import atomic_directory, atomic_file
with atomic_directory(Path("data/x/y")) as directory, atomic_file(Path("data/x.json")) as file:
    (directory / "half").touch()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer() -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of writing a directory and a file."""
    command = [sys.executable, "-c", LEAVES]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def partials() -> list[str]:
    return sorted(path.name.split(".")[1] for path in Path().rglob(".*.partial"))


def write_both() -> None:
    artifacts._cleaned.clear()  # as a process does that starts
    for name in ("y", "z"):
        with atomic_directory(Path("data/x") / name):
            pass
    write_json(Path("data/other.json"), {})


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(writer: subprocess.Popen[str]) -> None:
    writer.kill()
    writer.wait()
    assert partials() == ["x", "y"]
    write_both()
    assert partials() == []


DIES_AFTER_THE_PROBE = """
import os, signal
from pathlib import Path
from pipeline import artifacts
artifacts._remove = lambda path: os.kill(os.getpid(), signal.SIGKILL)
with artifacts.atomic_directory(Path("data/x/y")):
    pass
"""


def test_the_probe_of_a_process_that_is_killed_beside_its_directories_is_removed_too(tmp_path: Path) -> None:
    """It lies in the folder itself, of which DVC may be taking the checksum."""
    killed = subprocess.run([sys.executable, "-c", DIES_AFTER_THE_PROBE], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = Path("data/x").iterdir()
    assert (left.name.split(".")[1], left.suffix) == ("probe", ".partial")
    write_both()
    assert partials() == []


def test_a_directory_that_another_process_takes_for_abandoned_before_it_is_locked_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Path] = []

    def make_and_lose(*arguments: str) -> str:
        made.append(Path(mkdtemp(*arguments)))
        if len(made) == 1:
            artifacts._remove_abandoned(made[0])  # what another process does that begins now
        return str(made[-1])

    mkdtemp = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    write_both()
    assert not made[0].exists()
    assert Path("data/x/y").is_dir()
    assert partials() == []


def test_what_a_living_process_is_writing_is_never_removed(writer: subprocess.Popen[str]) -> None:
    write_both()
    assert partials() == ["x", "y"]
    assert writer.stdin
    writer.stdin.close()
    assert writer.wait() == 0
    assert (partials(), Path("data/x/y/half").is_file(), Path("data/x.json").is_file()) == ([], True, True)


def test_files_of_the_user_with_a_similar_name_stay(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = {"x.partial", ".x.partial", ".x.12345678.partial.txt", ".x.ABCDEFGH.partial"}
    for name in names:
        (tmp_path / "data" / name).touch()
    write_both()
    assert {path.name for path in (tmp_path / "data").iterdir()} - {"x", "other.json"} == names


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "somewhere"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("4096 requested and 0 written"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_an_error_that_names_what_was_being_written(tmp_path: Path, error: Exception) -> None:
    for writing in (atomic_file(Path("data/x.json")), atomic_directory(Path("data/x/y"))):
        with pytest.raises(OSError, match=r"data/x") as caught, writing:
            raise error
        assert caught.value.errno == errno.ENOSPC
    assert tree(tmp_path) == {}


def test_another_error_stays_what_it_is() -> None:
    for error in (OSError(errno.EACCES, "Permission denied", "somewhere"), ValueError("x"), UserError("No space left on device")):
        with pytest.raises(type(error)) as caught, atomic_file(Path("data/x.json")):
            raise error
        assert caught.value is error
