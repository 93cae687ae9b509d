"""Parcels in small pieces, with a list as the object store."""

from pathlib import Path

import pytest

from pipeline.grid import parcels
from pipeline.grid.node import Parcel
from pipeline.grid.parcels import checksum, pack, path_in_task


@pytest.fixture
def small_pieces(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PIECE", 10_000)


def sent(path: Path) -> Parcel:
    target = path_in_task(path)
    return pack(path, target, checksum(path, target), lambda piece: piece.copy())


def content(directory: Path) -> dict[str, bytes]:
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*") if file.is_file()}
