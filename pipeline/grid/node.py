"""Executes a task on a node of a cluster. Nodes have the packages but not the project, so this module is sent with the task.

For that reason it imports nothing from the project. It writes only to $SPECTRAN_SCRATCH of the node's environment; if that is not
set, to `spectran-<user>` in the node's temporary folder; and to the project's scratch if Ray runs on this machine only.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

SCRATCH = Path(".scratch")  # inside the task's folder

# Starts a module that the kernel kills when its parent, the Ray worker, dies. A task that Ray gave up would otherwise go on
# training.
RUN_MODULE = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Parcel:
    """A file or directory to send to the nodes: its path in the project, its checksum, and its tar archive.

    pieces: references to the parts of the archive in Ray's object store. bytes: the size of the archive.
    """

    path: Path
    checksum: str
    pieces: tuple[Any, ...]
    bytes: int


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task.

    status: exit status. log: its output. result: the tar archive of its result directory, None if it failed. node: the id of the
    node. received: bytes that the node received for the task, by path of the parcel.
    """

    status: int
    log: bytes
    result: Any
    node: str
    received: dict[Path, int]


class Pieces(RawIOBase):
    """A tar archive as a file that can be read once, with one piece in memory at a time."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self.pieces = iter(pieces)
        self.rest = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        while not len(self.rest):
            self.rest = memoryview(b"")  # frees the last piece before the next one is fetched
            piece = next(self.pieces, None)
            if piece is None:
                return b""
            self.rest = memoryview(piece)
        taken, self.rest = self.rest[:size], self.rest[size:]
        return bytes(taken)


def unpack(pieces: Iterable[Any], directory: Path) -> None:
    """Extract the pieces of a tar archive into a directory."""
    with tarfile.open(fileobj=Pieces(pieces), mode="r|") as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(directory)  # noqa: S202 - filtered; and the driver packed it


def execute(
    command: tuple[str, ...], parcels: list[Parcel], result: Path, settings: dict[str, str], base: Path | None
) -> Outcome:
    """Run `python -m` with `command` in a folder that contains the parcels at their paths, and its own scratch.

    result: path of the task's result directory in that folder. settings: environment variables. base: where to write; by default
    `node_scratch()`. Each task has its own folder. It is kept if the task is interrupted, so a retry on the same node resumes.
    """
    import ray

    base = (base or node_scratch()) / "node"
    # In a thread, because Ray gives the cores of a worker to another task while its main thread waits for an object.
    with ThreadPoolExecutor(1) as pool:
        fetched = list(pool.map(lambda parcel: fetch(parcel, base / "inputs", ray.get), parcels))
    identity = repr((command, settings, [parcel.checksum for parcel in parcels]))
    folder = base / "tasks" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    with locked(folder):
        for parcel in parcels:
            install(parcel, base / "inputs", folder)
        log = folder / "log"
        with log.open("wb") as output:
            status = subprocess.run(
                [sys.executable, "-c", RUN_MODULE, *command],
                cwd=folder,
                env=os.environ | settings | {"SPECTRAN_SCRATCH": str(folder / SCRATCH)},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        printed = log.read_bytes()
        archive = tar_of(folder / result) if status == 0 else None
        if archive is not None:
            shutil.rmtree(folder)
    received = {parcel.path: parcel.bytes for parcel, new in zip(parcels, fetched, strict=True) if new}
    return Outcome(status, printed, archive, ray.get_runtime_context().get_node_id(), received)


def node_scratch() -> Path:
    """Return the directory that this node may write to. If it is shared between nodes, a task can resume on another node.

    Raises PermissionError if others own the temporary directory or can write to it, because they could replace a task's results.
    """
    if chosen := os.environ.get("SPECTRAN_SCRATCH"):
        return Path(chosen).absolute()
    folder = Path(tempfile.gettempdir()).absolute() / f"spectran-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(
            f"{folder} is a link, or others own it or can write to it; remove it, or set SPECTRAN_SCRATCH to a folder of your own"
        )
    return folder


def fetch(parcel: Parcel, inputs: Path, get: Callable[[Any], Any]) -> bool:
    """Extract a parcel to `inputs/<checksum>` unless it is there; return whether it was fetched.

    get: returns the piece of a reference. A lock makes concurrent tasks of a node fetch a parcel once.
    """
    target = inputs / parcel.checksum
    with locked(target):
        if target.is_dir():
            return False
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        unpack(map(get, parcel.pieces), partial)
        partial.replace(target)
        return True


def install(parcel: Parcel, inputs: Path, folder: Path) -> None:
    """Provide a fetched parcel at its path in a task's folder.

    Inputs are links, because all tasks only read them. Parts of scratch are copies, because a task may write there.
    """
    target, content = folder / parcel.path, inputs / parcel.checksum / parcel.path.name
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not parcel.path.is_relative_to(SCRATCH):
        target.symlink_to(content)
    elif content.is_dir():
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(content, partial)
        partial.replace(target)
    else:
        shutil.copyfile(content, target)


def tar_of(directory: Path) -> Any:
    """Return the tar archive of a directory, as bytes that are mapped from a deleted temporary file, not held in memory."""
    with tempfile.TemporaryFile(dir=directory.parent) as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(directory, arcname=".")
        file.flush()
        return np.asarray(np.memmap(file, np.uint8, mode="r"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` among the processes of this node. The kernel releases it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
