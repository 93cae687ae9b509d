"""A small project before and after every stage, and stages that run on copies of it, in forks of this process.

This process imports what stages import, in one thread, so that a stage takes tenths of a second. Clocks stand still, since some
artifacts hold seconds: a stage that runs twice then writes the same bytes.
"""

import contextlib
import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import PARTIAL
from tests.conftest import tiny_params

STAGES = (
    "validate",
    "download tiny",
    "preprocess tiny",
    "embed tiny minilm",
    "svd tiny minilm",
    "train",
    "evaluate",
    "cell tiny sasrec spectran",
    "aggregate",
    "compare",
    "tune tiny sasrec base info_nce",
    "publish here",
    "baselines tiny",
    "check",
    "cold spectran",
    "package",
    "publish here --restore",
)
GONE = {"publish here --restore": ("grid/cells", ".scratch")}  # what a stage brings back, removed before it
FOLDERS = ("", ".scratch")  # that may lie on a disk of their own
ROOT = Path(__file__).parents[2]
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
REMOVALS = {"os.remove", "os.rmdir"}
EPOCHS = (315_532_800, 2_114_380_800)  # 1980 and 2037, in s
SECONDS = 600  # until a stage is taken to hang
UNDER_WAY = 70  # the exit code of a stage that did not end by itself

OnWrite = Callable[[int, str], None]  # what is done before a write: its number, from 1, and its audit event
First = Callable[[Path], None]  # what a forked process does first, given the project


class FaultError(Exception):
    """What must not be: the trial, and what was found."""


@dataclass
class Bench:
    """The states of a small project before every stage, and what it is after it."""

    root: Path
    stages: tuple[str, ...]
    before: dict[str, Path] = field(default_factory=dict)
    after: dict[str, dict[str, str]] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[tuple[str, str], int] = field(default_factory=dict)  # a stage writes into a folder
    counts: Counter[str] = field(default_factory=Counter)  # trials without a fault
    faults: list[str] = field(default_factory=list)

    def build(self) -> None:
        """Run every stage once, in order, and count its writes."""
        project = self.root / "project"
        project.mkdir(parents=True)
        params = tiny_params() | {"encoder": "minilm", "adapter": "spectran", "dim": 8}
        params["sources"]["tiny"] |= {"items": 80, "users": 60}
        params["train"] |= {"epochs": 2, "batch_size": 32}
        params["grid"] |= {"dim": 8, "adapters": ["spectran"], "seeds": [0]}
        params["grid"]["tuning"] |= {"trials": 2, "losses": ["info_nce"]}
        (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        (project / "grid").mkdir()
        shutil.copyfile("grid/space.yaml", project / "grid/space.yaml")
        shutil.copytree("metrics/paper", project / "metrics/paper")
        for stage in self.stages:
            for folder in GONE.get(stage, ()):
                shutil.rmtree(project / folder)
            self.before[stage] = self.root / "before" / stage.replace(" ", "-")
            shutil.copytree(project, self.before[stage])
            self.expect(stage, project)
            import_all(self.log.with_suffix(".modules"))
            self.after[stage] = tree(project)
            for folder in FOLDERS:
                self.bytes[stage, folder] = size(project / folder) - size(self.before[stage] / folder)
            counted = self.root / "counted"
            with self.project(stage) as copy:
                start = time.time()
                run(stage, copy, self.log, writes_are_counted_in(counted))
                self.seconds[stage] = time.time() - start
            self.writes[stage] = int(counted.read_text())

    @property
    def log(self) -> Path:
        return self.root / "log"

    @contextlib.contextmanager
    def project(self, stage: str) -> Iterator[Path]:
        """A copy of the project as it is before a stage, in a folder that is removed at the end."""
        copy = self.root / "copy"
        shutil.copytree(self.before[stage], copy)
        try:
            yield copy
        finally:
            shutil.rmtree(copy)

    def expect(self, stage: str, project: Path, status: int = 0) -> str:
        """Run a stage undisturbed; raise FaultError where it ends with another status, or prints a traceback."""
        found = run(stage, project, self.log)
        printed = self.log.read_text(errors="replace")
        if found != status or "Traceback" in printed:
            raise FaultError(f"{stage} ended with {found}:\n{printed[-2000:]}")
        return printed

    def check(self, stage: str, project: Path, trial: str) -> None:
        """Run the stage again; raise FaultError unless all is as if it had run once."""
        try:
            self.expect(stage, project)
        except FaultError as fault:
            raise FaultError(f"{trial}, run again: {fault}") from None
        self.compare(stage, project, trial)

    def compare(self, stage: str, project: Path, trial: str) -> None:
        """Raise FaultError unless the project is what an undisturbed run of the stage leaves."""
        found, wanted = tree(project), self.after[stage]
        if left := [name for name in found if any(PARTIAL.fullmatch(part) for part in Path(name).parts)]:
            raise FaultError(f"{trial}: half-written and left: {left}")
        if different := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
            raise FaultError(f"{trial}: not as without the fault: {different}")

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """Print a fault of what is done inside, and go on."""
        try:
            yield
        except FaultError as fault:
            self.faults.append(str(fault))
            print(f"FAULT {fault}", flush=True)


def tree(project: Path) -> dict[str, str]:
    """Checksum of every file; directories too, as an empty one is something left."""
    found = {}
    for path in sorted(project.rglob("*")):
        name = path.relative_to(project).as_posix()
        if name.startswith("data/runs/embed-"):  # says which shards this very run embedded
            continue
        if path.is_dir():
            found[name] = "directory"
        elif path.name != "grid.lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------------------------------------- one stage, forked


def run(stage: str, project: Path, log: Path, first: First | None = None, meanwhile: Callable[[int], None] | None = None) -> int:
    """Run a stage in a fork; return its exit status, negative for a signal. Raises FaultError where it hangs.

    first: called in the fork before the stage; meanwhile: called here with the id of the process.
    """
    child = start(stage, project, log, first)
    if meanwhile:
        meanwhile(child)
    return wait(stage, child, log)


def start(stage: str, project: Path, log: Path, first: First | None = None) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _become(stage, project, log, first)
    return child


def wait(stage: str, child: int, log: Path) -> int:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise FaultError(f"{stage} hangs:\n{log.read_text(errors='replace')[-2000:]}")


def _become(stage: str, project: Path, log: Path, first: First | None) -> None:
    """Be the stage, in this process, until it ends."""
    status: Any = UNDER_WAY
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(project)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if first:
            first(project.resolve())
        try:
            _act(stage)
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else 1
        if not first:
            log.with_suffix(".modules").write_text("\n".join(_imported()))
    except BaseException:
        if status == UNDER_WAY:  # else a signal came after the stage's end, while its modules were listed
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _act(stage: str) -> None:
    """Run a stage in this process, as `python -m stages.NAME ARGUMENTS`."""
    name, *arguments = stage.split()
    sys.argv = [name, *arguments]
    import_module("stages").run(import_module(f"stages.{name}").main)


def _imported() -> list[str]:
    """The modules of this process that came from files, in the order of their import."""
    return [name for name, module in list(sys.modules.items()) if getattr(module, "__file__", None)]


def import_all(listed: Path) -> None:
    """Import the modules that a stage imported: torch's compiler alone, which it loads with the first step, takes seconds."""
    for name in listed.read_text().splitlines():
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # some can be imported only by their package
                import_module(name)


def alone(stage: str) -> None:
    """Run a stage in this process, which is not forked."""
    prepare()
    _act(stage)


def _watch(project: Path, on_write: OnWrite) -> None:
    """Call `on_write` before every write of this process to the project. An audit hook stays for the life of a process."""
    count = 0
    inside = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, inside
        if inside or not _writes(event, arguments):
            return
        name = os.fspath(arguments[0]) if not isinstance(arguments[0], int) else None
        if name is None or (isinstance(name, str) and not os.path.abspath(name).startswith(str(project))):  # noqa: PTH100
            return
        count += 1
        inside = True
        try:
            on_write(count, event)
        finally:
            inside = False

    sys.addaudithook(hook)


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event != "open":
        return event in WRITES
    flags = arguments[2] if isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def killed_at(wanted: int) -> First:
    """SIGKILL before a write."""

    def on_write(count: int, event: str) -> None:
        if count == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda project: _watch(project, on_write)


def full_from(wanted: int) -> First:
    """No write succeeds from one on; a full disk still removes."""

    def on_write(count: int, event: str) -> None:
        if count >= wanted and event not in REMOVALS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    return lambda project: _watch(project, on_write)


def writes_are_counted_in(file: Path) -> First:
    def on_write(count: int, event: str) -> None:
        file.write_text(str(count))

    return lambda project: _watch(project, on_write)


def with_memory(more: int) -> First:
    """Allow so many bytes more than the process has."""

    def limit(_: Path) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)

    return limit


def with_clock(chance: random.Random) -> First:
    """Let the time of day jump between 1980 and 2037."""

    def jump(_: Path) -> None:
        time.time = lambda: chance.uniform(*EPOCHS)
        time.time_ns = lambda: int(chance.uniform(*EPOCHS) * 1e9)

    return jump


def prepare() -> None:
    """One thread, and clocks that stand still: a fork takes this along, and what is imported."""
    os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.pop("SPECTRAN_SCRATCH", None)
    time.perf_counter = lambda: 0.0
    publishing: Any = import_module("pipeline.report.publishing")
    publishing.committed_code = lambda: "0123456789"  # the project is no checkout
