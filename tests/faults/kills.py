"""Kill every stage in the middle, run it again, and compare: `python -m tests.faults.kills --random 100` (`make faults`).

Each trial is a process of its own, forked from this one, which has everything imported. It runs a stage on a copy of a small
project and is stopped: by SIGKILL just before its n-th write (open, rename, mkdir, remove, …); by SIGKILL, SIGTERM or SIGINT at a
random moment; or by a full disk, at its n-th write or after so many bytes. Then the stage runs again, undisturbed. Every file of
the project must then be what it is without the fault, byte for byte, and nothing half-written may be left. Clocks stand still in
both, since some artifacts hold seconds.
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
)
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
SECONDS = 600  # until a stage is taken to hang
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

OnWrite = Callable[[int], None]


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

    def build(self) -> None:
        """Run every stage once, in order, and count its writes."""
        project = self.root / "project"
        project.mkdir(parents=True)
        params = tiny_params() | {"encoder": "minilm", "adapter": "spectran", "dim": 8}
        params["sources"]["tiny"] |= {"items": 80, "users": 60}
        params["train"] |= {"epochs": 2, "batch_size": 32}
        params["grid"] |= {"dim": 8, "adapters": ["base", "spectran"], "seeds": [0]}
        params["grid"]["adapters"] = ["spectran"]
        params["grid"]["tuning"] |= {"trials": 2, "losses": ["info_nce"]}
        (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        (project / "grid").mkdir()
        shutil.copyfile("grid/space.yaml", project / "grid/space.yaml")
        shutil.copytree("metrics/paper", project / "metrics/paper")
        for stage in self.stages:
            self.before[stage] = self.root / "before" / stage.replace(" ", "-")
            shutil.copytree(project, self.before[stage])
            start = time.time()
            self.expect(stage, project)
            self.seconds[stage] = time.time() - start
            self.after[stage] = tree(project)
            self.bytes[stage] = size(project) - size(self.before[stage])
            counted = self.root / "counted"
            with self.project(stage) as copy:
                run(stage, copy, self.log, writes_are_counted_in(counted))
            self.writes[stage] = int(counted.read_text())

    @property
    def log(self) -> Path:
        return self.root / "log"

    @contextlib.contextmanager
    def project(self, stage: str, where: Path | None = None) -> Iterator[Path]:
        """A copy of the project as it is before a stage, in a folder that is removed at the end."""
        copy = (where or self.root) / "copy"
        shutil.copytree(self.before[stage], copy)
        yield copy
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
            found, wanted = tree(project), self.after[stage]
            if left := [name for name in found if any(PARTIAL.fullmatch(part) for part in Path(name).parts)]:
                raise FaultError(f"half-written and left: {left}")
            if different := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
                raise FaultError(f"not as without the fault: {different}")
        except FaultError as fault:
            raise FaultError(f"{trial}: {fault}") from None


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

    on_write: called with 1, 2, … before each write to the project; meanwhile: called with the process's id once it runs.
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
        name, *arguments = stage.split()
        sys.argv = [name, *arguments]
        if on_write:
            _watch(project.resolve(), on_write)
        try:
            import_module("stages").run(import_module(f"stages.{name}").main)
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


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
            on_write(count)
        finally:
            inside = False

    sys.addaudithook(hook)


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event != "open":
        return event in WRITES
    flags = arguments[2] if isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def killed_at(wanted: int) -> OnWrite:
    def on_write(count: int) -> None:
        if count == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_write


def full_from(wanted: int) -> OnWrite:
    """No write succeeds from one on, but removals: those of a full disk do."""

    def on_write(count: int) -> None:
        if count == wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    return on_write


def writes_are_counted_in(file: Path) -> OnWrite:
    def on_write(count: int) -> None:
        file.write_text(str(count))

    return on_write


# ---------------------------------------------------------------------------------------------------------------------- trials


def at_every_write(bench: Bench, counts: Counter[str], share: float, chance: random.Random) -> None:
    """SIGKILL before every write of every stage, or a share of them; and again with a disk that is full."""
    for stage in bench.stages:
        for number in range(1, bench.writes[stage] + 1):
            if chance.random() >= share:
                continue
            with bench.project(stage) as project:
                status = run(stage, project, bench.log, killed_at(number))
                if status != -signal.SIGKILL:
                    raise FaultError(f"{stage} has fewer than {number} writes the second time")
                bench.check(stage, project, f"{stage} killed before write {number}")
            counts[f"{stage}: kills before a write"] += 1
        print(f"{stage}: {counts[f'{stage}: kills before a write']} kills before a write", flush=True)


def at_random(bench: Bench, counts: Counter[str], trials: int, chance: random.Random) -> None:
    """Signals at random moments of random stages."""
    for trial in range(1, trials + 1):
        stage, sent = chance.choice(bench.stages), chance.choice(SIGNALS)
        delay = chance.uniform(0, bench.seconds[stage])

        def meanwhile(child: int, delay: float = delay, sent: signal.Signals = sent) -> None:
            time.sleep(delay)
            os.kill(child, sent)

        with bench.project(stage) as project:
            status = run(stage, project, bench.log, meanwhile=meanwhile)
            if sent == signal.SIGINT and "Traceback" in bench.log.read_text(errors="replace"):
                raise FaultError(f"{stage}: Ctrl-C after {delay:.2f} s prints a traceback:\n{bench.log.read_text()[-2000:]}")
            bench.check(stage, project, f"{stage}, {sent.name} after {delay:.2f} s")
        counts[f"{sent.name} at a random moment{' (it had ended)' if status == 0 else ''}"] += 1
        if trial % 10 == 0:
            print(f"{trial} signals at random moments", flush=True)


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


def full_at_writes(bench: Bench, counts: Counter[str], share: float, chance: random.Random) -> None:
    """ENOSPC instead of every write of every stage, or of a share of them."""
    for stage in bench.stages:
        for number in range(1, bench.writes[stage] + 1):
            if chance.random() >= share:
                continue
            trial = f"{stage}, disk full at write {number}"
            with bench.project(stage) as project:
                stopped = refused(bench, stage, project, full_from(number), trial)
                bench.check(stage, project, trial)
            counts["disk full at a write" + ("" if stopped else " (done without it)")] += 1


def full_disks(bench: Bench, counts: Counter[str], stages: tuple[str, ...], shares: tuple[float, ...]) -> None:
    """A real disk with room for a share of what a stage writes; then with room for all. Needs to mount a tmpfs."""
    disk = bench.root / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        counts["full tmpfs: not tried, no right to mount one"] += 1
        return
    try:
        for stage in stages:
            for share in shares:
                trial = f"{stage} with room for {share:.0%} of what it writes"
                with bench.project(stage, disk) as project:
                    free = os.statvfs(disk)
                    used = (free.f_blocks - free.f_bfree) * free.f_frsize
                    room = max(int(bench.bytes[stage] * share), 4096)
                    subprocess.run(["mount", "-o", f"remount,size={(used + room) // 4096 * 4096}", disk], check=True)
                    stopped = refused(bench, stage, project, None, trial)
                    subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
                    bench.check(stage, project, trial)
                counts["full tmpfs" + ("" if stopped else " (it had room enough)")] += 1
    finally:
        subprocess.run(["umount", disk], check=True)


def prepare(stages: tuple[str, ...]) -> None:
    """Import what stages import, in one thread, and stop the clocks: a fork takes all of this along."""
    os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.pop("SPECTRAN_SCRATCH", None)
    names = {stage.split()[0] for stage in stages}
    needed = {
        "train": ("pipeline.training.loop",),
        "evaluate": ("pipeline.evaluation.evaluate",),
        "embed": ("pipeline.embedding.shards", "transformers.models.bert"),
        "svd": ("pipeline.embedding.spectrum",),
        "aggregate": ("pipeline.report.write",),
        "tune": ("optuna",),
        "publish": ("pipeline.report.publishing",),
        "download": ("pipeline.data.sources.demo",),
        "preprocess": ("pipeline.data.interactions",),
    }
    for name in names:
        for module in (f"stages.{name}", *needed.get(name, ())):
            import_module(module)
    time.perf_counter = lambda: 0.0
    if "publish" in names:
        import_module("pipeline.report.publishing").committed_code = lambda: "0123456789"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--until", default=STAGES[-1].split()[0], help="the last stage, in the pipeline's order")
    parser.add_argument("--random", type=int, default=100, help="signals at random moments")
    parser.add_argument("--writes", type=float, default=1.0, help="share of all writes before which a stage is killed")
    parser.add_argument("--full", type=float, default=0.25, help="share of all writes at which the disk is full")
    parser.add_argument("--disks", type=float, nargs="*", default=[0.0, 0.3, 0.6, 0.9], help="room on a disk, in shares")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = [stage.split()[0] for stage in STAGES]
    stages = STAGES[: names.index(given.until) + 1]
    prepare(stages)
    counts: Counter[str] = Counter()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder), stages)
        bench.build()
        print(f"writes of the stages: {json.dumps(bench.writes)}", flush=True)
        try:
            at_every_write(bench, counts, given.writes, chance)
            at_random(bench, counts, given.random, chance)
            full_at_writes(bench, counts, given.full, chance)
            if given.disks:
                full_disks(bench, counts, stages[1:], tuple(given.disks))
        except FaultError as fault:
            sys.exit(f"FAULT {fault}")
        finally:
            for what, number in sorted(counts.items()):
                print(f"{number:5} {what}")
    print(f"{sum(counts.values())} faults: lost 0, different 0, left over 0, tracebacks 0")


if __name__ == "__main__":
    main()
