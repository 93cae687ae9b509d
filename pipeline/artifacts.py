"""Atomic writes, sidecars with provenance and checksums, and fingerprints."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import numpy as np

from common.disk import room_for
from common.dvc_state import has_remote
from common.errors import UserError

SIDECAR = "sidecar.json"
# Artifacts with a sidecar for which a message offers `dvc pull`.
PUSHED = ("data/raw/*", "data/sequences/*", "data/embeddings/*/*", "data/spectrum/*/*", "data/checkpoints/selected")
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
    """Read JSON; raise UserError that names the command `made_by` where the file is missing or broken, or holds NaN."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing; it is made by {made_by}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON; delete it and make it again by {made_by}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# ------------------------------------------------------------------------------------------- what is read is what was written
#
# An artifact directory has a sidecar, which lists the checksum of every file. A single file that is no artifact of DVC's ends
# with its seal. Sidecar and seal cover the place of what they belong to: an artifact that was moved elsewhere is refused.


def verify(directory: Path, made_by: str, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the sidecar of an artifact whose files are those that were written; every reader asks here first.

    names: of the files that are going to be read, relative to `directory`; all if left out. A file is read for its checksum once
    per process. DVC takes a read-only object of its cache for intact, and a downloaded one too unless the remote says `verify`.

    Raises UserError for a file that is missing or not the one that the sidecar lists, and for a sidecar that is damaged or
    belongs to another artifact: which file, what is wrong, and the command that makes it again (`made_by`).
    """
    sidecar = read_signed(directory / SIDECAR, made_by)
    files = sidecar.get("files")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{directory / SIDECAR} lists no files; {_repair(directory, made_by)}")
    for name in files if names is None else names:
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing; {_how_to_make(directory, made_by)}")
        if name not in files:
            raise UserError(f"{path} is not a file of this artifact, {SIDECAR} does not list it; {_repair(directory, made_by)}")
        if _known_sha256(path) != files[name]:
            raise UserError(f"{path} is damaged, its checksum is not that in {SIDECAR}; {_repair(directory, made_by)}")
    return sidecar


def read_signed(path: Path, made_by: str) -> dict[str, Any]:
    """The content of a file that `write_signed` wrote. Raises UserError if it is missing, damaged or from another place."""
    if not path.is_file():
        raise UserError(f"{path} is missing; {_how_to_make(path.parent, made_by)}")
    content = read_json(path, made_by)
    if not isinstance(content, dict) or signed(path, content) != content:
        raise UserError(
            f"{path} is damaged or belongs elsewhere, its content does not fit its checksum; {_repair(path.parent, made_by)}"
        )
    return content


def signed(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """`content` with `checksum`, which covers the content and the path within the project or scratch."""
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return rest | {"checksum": fingerprint(_location(path), rest)}


def write_signed(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, and its checksum in it."""
    write_json(path, signed(path, content))


def _location(path: Path) -> str:
    """The path relative to scratch or to the current directory, so that a copy of the project elsewhere is as good."""
    absolute = path.absolute()
    for owner, name in ((scratch(), "scratch"), (Path.cwd(), "project")):
        if absolute.is_relative_to(owner):
            return f"{name}:{absolute.relative_to(owner).as_posix()}"
    return absolute.name


def _how_to_make(directory: Path, made_by: str) -> str:
    """What to do where a file of an artifact, or all of it, is not there."""
    dvc = not any(directory.absolute().is_relative_to(folder) for folder in (scratch(), Path.cwd() / "docs"))
    if not dvc and directory.is_dir():
        return _repair(directory, made_by)
    pushed = any(directory.match(pattern) for pattern in PUSHED)
    pull = f"; `dvc pull {directory}` fetches it if it was pushed" if pushed and has_remote() else ""
    return f"it is made by {made_by}{pull}"


def _repair(directory: Path, made_by: str) -> str:
    if directory.absolute().is_relative_to(scratch()):
        return f"`rm -r {directory}` and the same command once more make it again"
    if directory.absolute().is_relative_to(Path.cwd() / "docs"):
        return f"`git checkout {directory}` brings back what was committed"
    return (
        f"`chmod -R u+w $(dvc cache dir); rm -r {directory}; dvc pull {directory}` checks the cache and repairs it; "
        f"without a remote, {made_by} makes it again"
    )


_checksums: dict[tuple[str, int, int, int], str] = {}


def _known_sha256(path: Path) -> str:
    """Checksum of a file, computed once per process as long as the file stays the same."""
    state = path.stat()
    key = (str(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns)
    if key not in _checksums:
        _checksums[key] = sha256(path)
    return _checksums[key]


SEAL = b"\n# sha256 %064d\n" % 0  # the form of a seal, with the checksum for the digits


@contextmanager
def sealed_file(path: Path) -> Iterator[Path]:
    """`atomic_file` for a file that `check_seal` checks: a line with its checksum is added at the end, which readers ignore."""
    with atomic_file(path) as partial:
        yield partial
        seal = _seal(partial, path, partial.stat().st_size)
        with partial.open("ab") as file:
            file.write(seal)


def check_seal(path: Path, made_by: str) -> None:
    """`verify` for a file that `sealed_file` wrote. Raises UserError if it is missing, damaged or of another place."""
    try:
        length = path.stat().st_size - len(SEAL)
        with path.open("rb") as file:
            file.seek(max(length, 0))
            found = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing; it is made by {made_by}") from None
    if length < 0 or found != _seal(path, path, length):
        raise UserError(f"{path} is damaged, its checksum is not that at its end; {_repair(path, made_by)}")


def _seal(file: Path, path: Path, length: int) -> bytes:
    """The seal of the first `length` bytes of `file`, as the content of `path`."""
    digest = hashlib.sha256(_location(path).encode())
    with file.open("rb") as content:
        while block := content.read(min(length, 2**20)):
            digest.update(block)
            length -= len(block)
    return b"\n# sha256 %s\n" % digest.hexdigest().encode()


def open_array(path: Path, stage: str, mode: Any) -> "np.memmap":
    """Map a .npy file; UserError where it is missing or damaged."""
    import numpy as np

    try:
        return cast("np.memmap", np.load(path, mmap_mode=mode, allow_pickle=False))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc repro` of the {stage} stage makes it") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `dvc repro` again") from None


PARTIAL = re.compile(r"\..+\.[a-z0-9_]{8}\.partial")  # as `tempfile` makes names from the prefix and suffix below
_cleaned: set[Path] = set()


@contextmanager
def _partial(folder: Path, name: str, directory: bool) -> Iterator[Path]:
    """Make an empty file or directory `.name.random.partial`, and remove what is left of it at the end.

    It is locked for as long as this process works on it. When a process is killed, the kernel unlocks what it leaves behind, and
    the next process that writes into the same folder removes that. Nothing is removed that is locked, or cannot be locked.
    """
    _clean(folder)
    while True:
        if directory:
            partial = Path(tempfile.mkdtemp(".partial", f".{name}.", folder))
            try:
                descriptor = os.open(partial, os.O_RDONLY)
            except FileNotFoundError:  # it was taken for abandoned before it was opened
                continue
        else:
            descriptor, name_of_file = tempfile.mkstemp(".partial", f".{name}.", folder)
            partial = Path(name_of_file)
        try:
            with suppress(OSError):  # on some network file systems; nobody else can lock it there either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if partial.exists():  # else it was taken for abandoned before it was locked
                yield partial
                return
        finally:
            os.close(descriptor)
            _remove(partial)


def _clean(folder: Path) -> None:
    """Remove what killed processes left in a folder; once per process, for shards are written by the thousand."""
    if folder.absolute() not in _cleaned:
        _cleaned.add(folder.absolute())
        for entry in folder.iterdir():
            if PARTIAL.fullmatch(entry.name):
                _remove_abandoned(entry)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, and wait for it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # on some network file systems
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(partial: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(partial, (os.O_RDONLY if partial.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where the owner lives
            _remove(partial)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it there on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # DVC may have linked `path` to its read-only cache: replacing the name leaves the cache alone, writing through would not.
    with _partial(path.parent, path.name, directory=False) as partial, room_for(path):
        yield partial
        partial.chmod(0o644)
        partial.replace(path)


@contextmanager
def atomic_directory(path: Path, made_from: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary directory; on success it replaces `path` whole, on failure it is removed and `path` stays.

    With `made_from`, `sidecar.json` is added: that, and the checksum of every file, for `verify`. The temporary directory lies
    outside `path.parent`, which may itself be something that a later stage depends on, unless `path.parent` is on another disk.
    Raises UserError if `path` lies outside the folders of artifacts.
    """
    check_artifact_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    around = path.parent.parent if _can_rename(path.parent.parent.absolute(), path.parent.absolute()) else path.parent
    with _partial(around, path.name, directory=True) as partial, room_for(path):
        yield partial
        if made_from is not None:
            files = {file.relative_to(partial).as_posix(): sha256(file) for file in sorted(_files(partial))}
            write_json(partial / SIDECAR, signed(path / SIDECAR, {**made_from, "files": files}))
        partial.chmod(0o755)
        with _locked(around), ExitStack() as replaced:  # another process may replace `path` too
            if path.exists():
                # The old directory is first moved aside whole, so that a kill never leaves half of it.
                old = replaced.enter_context(_partial(around, path.name, directory=True))
                path.replace(old / path.name)
            partial.replace(path)


@cache
def _can_rename(outside: Path, inside: Path) -> bool:
    """Return whether a directory of `outside` can be renamed into `inside`; not if that is another disk or volume."""
    _clean(inside)  # a process that was killed below left its probe there
    with _partial(outside, "probe", directory=True) as probe:
        try:
            probe.rename(inside / probe.name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
        _remove(inside / probe.name)
        return True


@contextmanager
def added_files(directory: Path, names: Iterable[str], made_by: str) -> Iterator[None]:
    """Let the files `names` be written into an artifact, in place of older ones; its sidecar lists them once all are there."""
    sidecar = read_signed(directory / SIDECAR, made_by)
    kept = {name: checksum for name, checksum in sidecar["files"].items() if name not in names}
    write_signed(directory / SIDECAR, sidecar | {"files": kept})
    yield
    added = {name: sha256(directory / name) for name in names}
    write_signed(directory / SIDECAR, sidecar | {"files": kept | added})


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
