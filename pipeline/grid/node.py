"""What a node of a cluster does with a task. Nodes have the packages and not the project: this module travels with the task.

It imports nothing of the project for that reason. All it writes is in $SPECTRAN_SCRATCH of the node's environment; without
that, in `spectran-<user>` of its folder for temporary files; in the project's own scratch where Ray was started for it alone.
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

SCRATCH = Path(".scratch")  # of the folder that a task runs in

# Starts a module and has the kernel kill it when the worker dies: else a task that Ray has given up would go on training.
MORTAL = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Parcel:
    """A file or directory on its way to the nodes: its place in the project, its checksum, and its tar, cut into pieces that lie
    in the object store.
    """

    place: Path
    checksum: str
    pieces: tuple[Any, ...]
    bytes: int


@dataclass(frozen=True)
class Outcome:
    """How a task ended: its exit status, what it printed, the tar of its result where it succeeded; bytes that came for it."""

    status: int
    log: bytes
    result: Any
    node: str
    received: dict[Path, int]


class Pieces(RawIOBase):
    """A tar to read from front to back, one piece in memory at a time."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self.pieces = iter(pieces)
        self.rest = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        while not len(self.rest):
            self.rest = memoryview(b"")  # lets the last piece go before the next one comes
            piece = next(self.pieces, None)
            if piece is None:
                return b""
            self.rest = memoryview(piece)
        taken, self.rest = self.rest[:size], self.rest[size:]
        return bytes(taken)


def unpack(pieces: Iterable[Any], directory: Path) -> None:
    """Put the content of a tar into a directory."""
    with tarfile.open(fileobj=Pieces(pieces), mode="r|") as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(directory)  # noqa: S202 - filtered; and the driver packed it


def execute(
    command: tuple[str, ...], parcels: list[Parcel], result: Path, settings: dict[str, str], base: Path | None
) -> Outcome:
    """Run `python -m` and `command` in a folder that looks like the project: parcels in their places, and a scratch of its own.

    The folder is the task's own, and stays where the task is cut off: tried again on the same node, it goes on from there.
    """
    import ray

    base = (base or own_scratch()) / "node"
    # In a thread: a worker that waits for an object in its main thread lends its cores to one more task.
    with ThreadPoolExecutor(1) as pool:
        fetched = list(pool.map(lambda parcel: fetch(parcel, base / "inputs", ray.get), parcels))
    identity = repr((command, settings, [parcel.checksum for parcel in parcels]))
    folder = base / "tasks" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    with locked(folder):
        for parcel in parcels:
            put(parcel, base / "inputs", folder)
        log = folder / "log"
        with log.open("wb") as output:
            status = subprocess.run(
                [sys.executable, "-c", MORTAL, *command],
                cwd=folder,
                env=os.environ | settings | {"SPECTRAN_SCRATCH": str(folder / SCRATCH)},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        printed = log.read_bytes()
        made = packed(folder / result) if status == 0 else None
        if made is not None:
            shutil.rmtree(folder)
    received = {parcel.place: parcel.bytes for parcel, new in zip(parcels, fetched, strict=True) if new}
    return Outcome(status, printed, made, ray.get_runtime_context().get_node_id(), received)


def own_scratch() -> Path:
    """Where a node may write; tasks that were cut off go on where it outlives the node and others reach it.

    Raises PermissionError where others can write to the folder for temporary files that it would use: they could put another
    task's results there.
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
    """Have a parcel lie under `inputs` by its checksum; return whether it had to be sent for. Tasks of one node take turns."""
    target = inputs / parcel.checksum
    with locked(target):
        if target.is_dir():
            return False
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        unpack(map(get, parcel.pieces), partial)
        partial.replace(target)
        return True


def put(parcel: Parcel, inputs: Path, folder: Path) -> None:
    """Have a parcel in its place: linked, for all tasks read the same; copied into scratch, where a task may go on writing."""
    place, content = folder / parcel.place, inputs / parcel.checksum / parcel.place.name
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if not parcel.place.is_relative_to(SCRATCH):
        place.symlink_to(content)
    elif content.is_dir():
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(content, partial)
        partial.replace(place)
    else:
        shutil.copyfile(content, place)


def packed(directory: Path) -> Any:
    """The tar of a directory, as bytes that lie in a nameless file until they are read."""
    with tempfile.TemporaryFile(dir=directory.parent) as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(directory, arcname=".")
        file.flush()
        return np.asarray(np.memmap(file, np.uint8, mode="r"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have `path` to oneself, among the processes of this node. The kernel unlocks it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
