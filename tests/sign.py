"""Sidecars of artifacts that a test writes, because no artifact is read without one."""

from pathlib import Path

from pipeline.artifacts import SIDECAR, sha256, write_signed


def sign(directory: Path) -> None:
    """Write the sidecar of an artifact, with the checksums of its files."""
    files = {
        file.relative_to(directory).as_posix(): sha256(file)
        for file in directory.rglob("*")
        if file.is_file() and file.name != SIDECAR
    }
    write_signed(directory / SIDECAR, {"files": files})
