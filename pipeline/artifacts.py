"""Writing artifacts whole or not at all, saying what made them, and fingerprints."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import numpy as np

from common.errors import UserError

SIDECAR = "sidecar.json"
RUNS = Path("data/runs")
ARTIFACTS = (Path("data"), Path("grid"), Path("metrics"), Path("docs/results"))  # folders whose directories may be replaced


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """32 hexadecimal digits that change with any part (anything that JSON can hold)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: indented, keys in the order given, newline at the end."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, made_by: str) -> Any:
    """Read JSON; raise UserError that names the stage `made_by` where the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it is made by {made_by}") from None
    except ValueError:
        raise UserError(f"{path} is not valid JSON; delete it and make it again by {made_by}") from None


def verify(directory: Path, made_by: str) -> None:
    """Raise UserError for a file of an artifact that is missing, or not the bytes that its sidecar lists.

    DVC takes a read-only object of its cache for intact, and a downloaded one too unless the remote says `verify`.
    """
    for name, checksum in read_json(directory / SIDECAR, made_by).get("files", {}).items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing; it is made by {made_by}")
        if sha256(path) != checksum:
            raise UserError(
                f"{path} is damaged, its checksum is not that in {SIDECAR}; "
                f"`chmod -R u+w .dvc/cache; rm -r {directory}; dvc pull {directory}` checks the cache and mends it"
            )


def open_array(path: Path, stage: str, mode: Any) -> "np.memmap":
    """Map a .npy file; UserError where it is missing or damaged."""
    import numpy as np

    try:
        return cast("np.memmap", np.load(path, mmap_mode=mode, allow_pickle=False))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc repro` of the {stage} stage makes it") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `dvc repro` again") from None


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it there on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # DVC may have linked `path` to its read-only cache: replacing the name leaves the cache alone, writing through would not.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, made_from: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary directory; on success it replaces `path` whole, on failure it is removed and `path` stays.

    With `made_from`, `sidecar.json` is added: that, and the checksum of every file. It lies outside `path.parent`, which may
    itself be something that a later stage depends on. Raises UserError where `path` lies outside the folders of artifacts.
    """
    check_artifact_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent.parent))
    try:
        yield partial
        if made_from is not None:
            files = {file.relative_to(partial).as_posix(): sha256(file) for file in sorted(_files(partial))}
            write_json(partial / SIDECAR, {**made_from, "files": files})
        partial.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_artifact_folder(directory: Path) -> None:
    """Raise UserError unless `directory` lies inside a folder of artifacts: of the project in the current directory, or scratch.

    Whatever removes or replaces a directory asks here first: a wrong name must never cost more than an artifact.
    """
    owners = [*(Path.cwd() / folder for folder in ARTIFACTS), scratch()]
    if not any(owner.resolve() in directory.resolve().parents for owner in owners):
        raise UserError(f"{directory} is not replaced: it lies outside {', '.join(map(str, ARTIFACTS))} and scratch space")


def remove_directory(directory: Path) -> None:
    """Remove an artifact directory, if it exists. Raises UserError for one outside the folders of artifacts."""
    check_artifact_folder(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _files(directory: Path) -> Iterable[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def main_checkout() -> Path:
    """The user's checkout: the current directory, or where it is one of DVC's temporary workspaces, the one that owns it."""
    here = Path.cwd()
    for parent in here.parents:
        if parent.name == ".dvc":
            return parent.parent
    return here


def scratch() -> Path:
    """Where unfinished and finished runs live by fingerprint: $SPECTRAN_SCRATCH, or `.scratch` in the main checkout.

    Queued experiments run in temporary workspaces and share it.
    """
    return Path(os.environ.get("SPECTRAN_SCRATCH") or main_checkout() / ".scratch").absolute()
