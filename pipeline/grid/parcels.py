"""What a node needs, cut into pieces for the object store: a tar, of which no more than a piece is ever held in memory."""

import tarfile
from collections.abc import Callable
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import SIDECAR, fingerprint, scratch, sha256
from pipeline.grid.node import SCRATCH, Parcel

PIECE = 64 * 2**20  # bytes


def pack(path: Path, place: Path, checksum: str, put: Callable[[Any], Any]) -> Parcel:
    """Put a file or directory into the object store by `put`."""
    pieces = _Pieces(put)
    with tarfile.open(fileobj=pieces, mode="w|", dereference=True) as tar:
        tar.add(path, arcname=place.name, filter=lambda member: None if "__pycache__" in member.name else member)
    pieces.put()
    return Parcel(place, checksum, tuple(pieces.references), pieces.bytes)


def place_of(path: Path) -> Path:
    """Where a file of the project, or of scratch, lies in the folder that a task runs in."""
    path = path.absolute()
    return SCRATCH / path.relative_to(scratch()) if path.is_relative_to(scratch()) else path.relative_to(Path.cwd())


def checksum(path: Path, place: Path) -> str:
    """Changes with the content and the place; an artifact's sidecar has the checksums of its files."""
    if (path / SIDECAR).is_file():
        return fingerprint(str(place), sha256(path / SIDECAR))
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    code = [file for file in files if "__pycache__" not in file.parts]
    return fingerprint(str(place), [(file.relative_to(path.parent).as_posix(), sha256(file)) for file in code])


class _Pieces(RawIOBase):
    """A file to write, whose content goes into the object store in pieces; no more than one of them is held here."""

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self._put = put
        self._piece = bytearray()
        self.references: list[Any] = []
        self.bytes = 0

    def write(self, data: Any, /) -> int:
        self._piece += data
        if len(self._piece) >= PIECE:
            self.put()
        return len(data)

    def put(self) -> None:
        """What was written since the last piece becomes one."""
        piece, self._piece = self._piece, bytearray()
        if piece:
            self.references.append(self._put(np.frombuffer(piece, np.uint8)))
            self.bytes += len(piece)
