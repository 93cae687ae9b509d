"""Kill every stage in the middle, run it again, and compare: `python -m tests.faults.kills --random 100` (`make faults`).

Each trial is a process of its own, forked from this one, which has imported what stages import. It runs a stage on a copy of a
small project and is stopped: by SIGKILL just before its n-th write (open, rename, mkdir, remove, …); by SIGKILL, SIGTERM or
SIGINT at a random moment; or by a full disk, at its n-th write or after so many bytes. Then the stage runs again, undisturbed.
Every file of the project must then be what it is without the fault, byte for byte, and nothing half-written may be left. Clocks
stand still in all of this, since some artifacts hold seconds.

Before that, each stage runs once in a process that is not forked, and must leave the same bytes as a forked one.
"""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
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
ROOT = Path(__file__).parents[2]
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
REMOVALS = {"os.remove", "os.rmdir"}
SECONDS = 600  # until a stage is taken to hang
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

OnWrite = Callable[[int, str], None]


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
    bytes: dict[str, int] = field(default_factory=dict)
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
            self.bytes[stage] = size(project) - size(self.before[stage])
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
    def project(self, stage: str, where: Path | None = None) -> Iterator[Path]:
        """A copy of the project as it is before a stage, in a folder that is removed at the end."""
        copy = (where or self.root) / "copy"
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


def run(
    stage: str, project: Path, log: Path, on_write: OnWrite | None = None, meanwhile: Callable[[int], None] | None = None
) -> int:
    """Run a stage in a fork; return its exit status, negative for a signal. Raises FaultError where it hangs.

    on_write: called before each write to the project with 1, 2, … and the event; meanwhile: called with the process's id once it
    runs.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _become(stage, project, log, on_write)
    if meanwhile:
        meanwhile(child)
    until = time.time() + SECONDS
    while time.time() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise FaultError(f"{stage} hangs:\n{log.read_text(errors='replace')[-2000:]}")


def _become(stage: str, project: Path, log: Path, on_write: OnWrite | None) -> None:
    """Be the stage, in this process, until it ends."""
    status: Any = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(project)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if on_write:
            _watch(project.resolve(), on_write)
        try:
            _act(stage)
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else 1
        if not on_write:
            log.with_suffix(".modules").write_text("\n".join(_imported()))
    except BaseException:
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


def killed_at(wanted: int) -> OnWrite:
    def on_write(count: int, event: str) -> None:
        if count == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_write


def full_from(wanted: int) -> OnWrite:
    """No write succeeds from one on; a full disk still removes."""

    def on_write(count: int, event: str) -> None:
        if count >= wanted and event not in REMOVALS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    return on_write


def writes_are_counted_in(file: Path) -> OnWrite:
    def on_write(count: int, event: str) -> None:
        file.write_text(str(count))

    return on_write


# ---------------------------------------------------------------------------------------------------------------------- trials


def not_forked(bench: Bench) -> None:
    """Every stage in a process of its own, which must leave the same bytes as a forked one."""
    for stage in bench.stages:
        with bench.trial(), bench.project(stage) as project:
            command = [sys.executable, "-P", "-c", f"from tests.faults import kills; kills.alone({stage!r})"]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise FaultError(f"{stage}, not forked, ended with {done.returncode}:\n{done.stderr[-2000:]}")
            bench.compare(stage, project, f"{stage}, not forked")
            bench.counts["not disturbed: the same bytes in a process that is not forked"] += 1


def at_every_write(bench: Bench, share: float, chance: random.Random) -> None:
    """SIGKILL before every write of every stage, or a share of them."""
    for stage in bench.stages:
        what = f"{stage}: kills before a write"
        for number in range(1, bench.writes[stage] + 1):
            if chance.random() >= share:
                continue
            with bench.trial(), bench.project(stage) as project:
                status = run(stage, project, bench.log, killed_at(number))
                if status != -signal.SIGKILL:
                    raise FaultError(f"{stage} has fewer than {number} writes the second time")
                bench.check(stage, project, f"{stage} killed before write {number}")
                bench.counts[what] += 1
        print(f"{time.strftime('%H:%M')} {what}: {bench.counts[what]}", flush=True)


def at_random(bench: Bench, trials: int, chance: random.Random) -> None:
    """Signals at random moments of random stages."""
    for trial in range(1, trials + 1):
        stage, sent = chance.choice(bench.stages), chance.choice(SIGNALS)
        delay = chance.uniform(0, bench.seconds[stage])

        def meanwhile(child: int, delay: float = delay, sent: signal.Signals = sent) -> None:
            time.sleep(delay)
            os.kill(child, sent)

        with bench.trial(), bench.project(stage) as project:
            status = run(stage, project, bench.log, meanwhile=meanwhile)
            if sent == signal.SIGINT and "Traceback" in bench.log.read_text(errors="replace"):
                raise FaultError(f"{stage}: Ctrl-C after {delay:.2f} s prints a traceback:\n{bench.log.read_text()[-2000:]}")
            bench.check(stage, project, f"{stage}, {sent.name} after {delay:.2f} s")
            bench.counts[f"{sent.name} at a random moment{' (it had ended)' if status == 0 else ''}"] += 1
        if trial % 50 == 0:
            print(f"{time.strftime('%H:%M')} {trial} signals at random moments", flush=True)


def refused(bench: Bench, stage: str, project: Path, on_write: OnWrite | None, trial: str) -> bool:
    """Run a stage on a full disk; whether it stopped, in one line that says so. Raises FaultError for any other end."""
    status = run(stage, project, bench.log, on_write)
    printed = bench.log.read_text(errors="replace")
    lines = [line for line in printed.splitlines() if line.startswith(f"stages.{stage.split()[0]}: ")]
    if status == 0:
        return False
    if status != 1 or "Traceback" in printed or not any("free disk space" in line for line in lines):
        raise FaultError(f"{trial}: status {status}:\n{printed[-3000:]}")
    return True


def full_at_writes(bench: Bench, share: float, chance: random.Random) -> None:
    """ENOSPC instead of every write of every stage, or of a share of them, and of all writes after it."""
    for stage in bench.stages:
        for number in range(1, bench.writes[stage] + 1):
            if chance.random() >= share:
                continue
            trial = f"{stage}, disk full at write {number}"
            with bench.trial(), bench.project(stage) as project:
                stopped = refused(bench, stage, project, full_from(number), trial)
                bench.check(stage, project, trial)
                bench.counts["disk full at a write" + ("" if stopped else " (done without it)")] += 1
    print(f"{time.strftime('%H:%M')} the disk was full", flush=True)


def full_disks(bench: Bench, stages: tuple[str, ...], shares: tuple[float, ...]) -> None:
    """A real disk with room for a share of what a stage writes; then with room for all. Needs to mount a tmpfs."""
    disk = bench.root / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        bench.counts["full tmpfs: not tried, no right to mount one"] += 1
        return
    try:
        for stage in stages:
            for share in shares:
                trial = f"{stage} with room for {share:.0%} of what it writes"
                with bench.trial(), bench.project(stage, disk) as project:
                    free = os.statvfs(disk)
                    used = (free.f_blocks - free.f_bfree) * free.f_frsize
                    room = max(int(bench.bytes[stage] * share), 4096)
                    subprocess.run(["mount", "-o", f"remount,size={(used + room) // 4096 * 4096}", disk], check=True)
                    try:
                        stopped = refused(bench, stage, project, None, trial)
                    finally:
                        subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
                    bench.check(stage, project, trial)
                    bench.counts["full tmpfs" + ("" if stopped else " (it had room enough)")] += 1
    finally:
        subprocess.run(["umount", disk], check=True)


def prepare() -> None:
    """One thread, and clocks that stand still: a fork takes this along, and what is imported."""
    os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.pop("SPECTRAN_SCRATCH", None)
    time.perf_counter = lambda: 0.0
    publishing: Any = import_module("pipeline.report.publishing")
    publishing.committed_code = lambda: "0123456789"  # the project is no checkout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--until", metavar="STAGE", help="the last stage, in the pipeline's order")
    parser.add_argument("--random", type=int, default=100, help="signals at random moments")
    parser.add_argument("--writes", type=float, default=1.0, help="share of all writes before which a stage is killed")
    parser.add_argument("--full", type=float, default=0.25, help="share of all writes at which the disk is full")
    parser.add_argument("--disks", type=float, nargs="*", default=[0.0, 0.3, 0.6, 0.9], help="room on a disk, in shares")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = [stage.split()[0] for stage in STAGES]
    stages = STAGES[: names.index(given.until) + 1] if given.until else STAGES
    prepare()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder), stages)
        bench.build()
        print(f"{sum(bench.writes.values())} writes of the stages: {json.dumps(bench.writes)}", flush=True)
        not_forked(bench)
        at_every_write(bench, given.writes, chance)
        at_random(bench, given.random, chance)
        full_at_writes(bench, given.full, chance)
        if given.disks:
            full_disks(bench, stages[1:], tuple(given.disks))
    for what, number in sorted(bench.counts.items()):
        print(f"{number:5} {what}")
    if bench.faults:
        sys.exit(f"{len(bench.faults)} of {sum(bench.counts.values()) + len(bench.faults)} trials failed: see FAULT above")
    print(f"{sum(bench.counts.values())} faults: lost 0, different 0, left over 0, tracebacks 0")


if __name__ == "__main__":
    main()
