"""Packs files for the nodes of a cluster: a tar archive in pieces, of which only one is in memory at a time."""

import tarfile
from collections.abc import Callable
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import SIDECAR, fingerprint, scratch, sha256
from pipeline.grid.node import SCRATCH, Parcel

PIECE = 64 * 2**20  # bytes


def pack(source: Path, path: Path, checksum: str, put: Callable[[Any], Any]) -> Parcel:
    """Pack a file or directory into the object store; return its parcel.

    path: its path in a task's folder, from `path_in_task`. put: stores bytes and returns a reference to them.
    """
    pieces = _Pieces(put)
    with tarfile.open(fileobj=pieces, mode="w|", dereference=True) as tar:
        tar.add(source, arcname=path.name, filter=lambda member: None if "__pycache__" in member.name else member)
    pieces.flush_piece()
    return Parcel(path, checksum, tuple(pieces.references), pieces.bytes)


def path_in_task(source: Path) -> Path:
    """Return the path of a file of the project, or of scratch, relative to the folder of a task."""
    source = source.absolute()
    return SCRATCH / source.relative_to(scratch()) if source.is_relative_to(scratch()) else source.relative_to(Path.cwd())


def checksum(source: Path, path: Path) -> str:
    """Return a checksum of a file's or directory's content and its path in a task's folder.

    Of an artifact only the sidecar is read, because it contains the checksums of all files.
    """
    if (source / SIDECAR).is_file():
        return fingerprint(str(path), sha256(source / SIDECAR))
    files = [source] if source.is_file() else sorted(file for file in source.rglob("*") if file.is_file())
    code = [file for file in files if "__pycache__" not in file.parts]
    return fingerprint(str(path), [(file.relative_to(source.parent).as_posix(), sha256(file)) for file in code])


class _Pieces(RawIOBase):
    """A writable file whose content goes to the object store in pieces; only one piece is in memory."""

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self._put = put
        self._piece = bytearray()
        self.references: list[Any] = []
        self.bytes = 0

    def write(self, data: Any, /) -> int:
        self._piece += data
        if len(self._piece) >= PIECE:
            self.flush_piece()
        return len(data)

    def flush_piece(self) -> None:
        """Store everything written since the last piece as a new piece."""
        piece, self._piece = self._piece, bytearray()
        if piece:
            self.references.append(self._put(np.frombuffer(piece, np.uint8)))
            self.bytes += len(piece)
