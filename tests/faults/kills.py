"""Disturb every stage, run it again, and compare: `python -m tests.faults.kills --random 100` (`make faults`).

A trial runs a stage on a copy of a small project and disturbs it: by SIGKILL just before its n-th write (open, rename, mkdir,
remove, …); by SIGKILL, SIGTERM or SIGINT at a random moment; by a disk that is full or read-only, by little memory, by a clock
that jumps, or by a second process that runs the same stage. Then the stage runs again, undisturbed. Every file of the project
must then be what it is without the fault, byte for byte, and nothing half-written may be left.

Before that, each stage runs once in a process that is not forked, and must leave the same bytes as a forked one.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from tests.faults.bench import (
    EPOCHS,
    FOLDERS,
    ROOT,
    STAGES,
    Bench,
    FaultError,
    full_from,
    killed_at,
    prepare,
    run,
    start,
    wait,
    with_clock,
    with_memory,
)

NO_ROOM = "free disk space"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def not_forked(bench: Bench) -> None:
    """Every stage in a process of its own, which must leave the same bytes as a forked one."""
    for stage in bench.stages:
        with bench.trial(), bench.project(stage) as project:
            command = [sys.executable, "-P", "-c", f"from tests.faults import bench; bench.alone({stage!r})"]
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


def refused(bench: Bench, stage: str, status: int, says: str, trial: str) -> bool:
    """Whether a stage stopped in one line that says so. Raises FaultError for any other end but success."""
    printed = bench.log.read_text(errors="replace")
    lines = [line for line in printed.splitlines() if line.startswith(f"stages.{stage.split()[0]}: ")]
    if status == 0:
        return False
    if status != 1 or "Traceback" in printed or not any(says in line for line in lines):
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
                stopped = refused(bench, stage, run(stage, project, bench.log, full_from(number)), NO_ROOM, trial)
                bench.check(stage, project, trial)
                bench.counts["disk full at a write" + ("" if stopped else " (done without it)")] += 1
    print(f"{time.strftime('%H:%M')} the disk was full", flush=True)


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Callable[[str], object]]:
    """Lay a tmpfs over a folder, with what is in it; yield what mounts it again with other options."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", folder], check=True, capture_output=True)
        try:
            shutil.copytree(aside, folder, dirs_exist_ok=True)
            yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
        finally:
            subprocess.run(["umount", folder], check=True)


def may_mount(folder: Path) -> bool:
    try:
        with disk(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def full_disks(bench: Bench, shares: tuple[float, ...]) -> None:
    """Project, or scratch alone, on a disk with room for a share of what a stage writes there; then with room for all."""
    for stage, folder, share in product(bench.stages, FOLDERS, shares):
        if bench.bytes[stage, folder] <= 0:
            continue
        trial = f"{stage} with room for {share:.0%} of what it writes {'into ' * bool(folder)}{folder}"
        with bench.trial(), bench.project(stage) as project, disk(project / folder) as mount:
            free = os.statvfs(project / folder)
            used = (free.f_blocks - free.f_bfree) * free.f_frsize
            mount(f"size={(used + max(int(bench.bytes[stage, folder] * share), 4096)) // 4096 * 4096}")
            status = run(stage, project, bench.log)
            mount("size=1g")
            stopped = refused(bench, stage, status, NO_ROOM, trial)
            bench.check(stage, project, trial)
            bench.counts[f"full tmpfs for the {folder or 'project'}" + ("" if stopped else " (it had room enough)")] += 1


def read_only(bench: Bench) -> None:
    """Project, or scratch alone, on a disk that may not be written."""
    for stage, folder in product(bench.stages, FOLDERS):
        trial = f"{stage}, {folder or 'project'} read-only"
        with bench.trial(), bench.project(stage) as project, disk(project / folder) as mount:
            mount("ro")
            status = run(stage, project, bench.log)
            mount("rw")
            stopped = refused(bench, stage, status, "Read-only file system; check permissions", trial)
            if not stopped and not folder:
                raise FaultError(f"{trial}: it ended well")
            if bench.bytes[stage, folder] > 0:
                bench.check(stage, project, trial)
            bench.counts[f"read-only {folder or 'project'}" + ("" if stopped else " (it writes nothing there)")] += 1


def little_memory(bench: Bench, trials: int, chance: random.Random) -> None:
    """Up to 100 MB more than imports take. Without memory, C code aborts or crashes; Python and torch say so in one line."""
    for stage in bench.stages:
        for _ in range(trials):
            more = int(chance.uniform(0, 1e8))
            trial = f"{stage} with {more / 1e6:.0f} MB"
            with bench.trial(), bench.project(stage) as project:
                status = run(stage, project, bench.log, with_memory(more))
                crashed = status in (-signal.SIGABRT, -signal.SIGSEGV)
                what = "aborted" if crashed else "enough"
                if not crashed and refused(bench, stage, status, "out of memory", trial):
                    what = "one line"
                bench.check(stage, project, trial)
                bench.counts[f"little memory ({what})"] += 1


def moving_clocks(bench: Bench, chance: random.Random) -> None:
    """A kill before a random write; then all files have times between 1980 and 2037, and the time of day jumps between these."""
    for stage in bench.stages:
        trial = f"{stage}, other times after a kill"
        with bench.trial(), bench.project(stage) as project:
            run(stage, project, bench.log, killed_at(chance.randint(1, bench.writes[stage])))
            for path in project.rglob("*"):
                os.utime(path, (chance.uniform(*EPOCHS),) * 2)
            if status := run(stage, project, bench.log, with_clock(chance)):
                raise FaultError(f"{trial}: status {status}:\n{bench.log.read_text()[-2000:]}")
            bench.compare(stage, project, trial)
            bench.counts["the clock jumps"] += 1


def at_once(bench: Bench, trials: int, chance: random.Random) -> None:
    """Two processes that run the same stage in the same project, the second a little later."""
    for stage in bench.stages:
        for _ in range(trials):
            delay = chance.uniform(0, bench.seconds[stage]) * chance.choice([0, 1])
            trial = f"{stage} twice, the second after {delay:.2f} s"
            with bench.trial(), bench.project(stage) as project:
                logs = [bench.log, bench.log.with_name("log of the second")]
                children = []
                for log in logs:
                    children.append(start(stage, project, log))
                    time.sleep(delay)
                for child, log in zip(children, logs, strict=True):
                    if status := wait(stage, child, log):
                        raise FaultError(f"{trial}: status {status}:\n{log.read_text()[-2000:]}")
                bench.compare(stage, project, trial)
                bench.counts["two processes at once"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [stage.split()[0] for stage in STAGES]
    each = list(dict.fromkeys(names))
    parser.add_argument("--since", choices=each, default=names[0], help="the first stage that is disturbed")
    parser.add_argument("--until", choices=each, default=names[-1], help="the last stage")
    parser.add_argument("--random", type=int, default=100, help="signals at random moments")
    parser.add_argument("--writes", type=float, default=1.0, help="share of all writes before which a stage is killed")
    parser.add_argument("--full", type=float, default=0.25, help="share of all writes at which the disk is full")
    parser.add_argument("--disks", type=float, nargs="*", default=[0.0, 0.3, 0.6, 0.9], help="room on a disk, in shares")
    parser.add_argument("--others", type=int, default=5, help="trials with little memory, and with two processes, of each stage")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    stages = STAGES[: len(names) - names[::-1].index(given.until)]
    disturbed = stages[names.index(given.since) :]
    if not disturbed:
        parser.error(f"{given.since} comes after {given.until}: {', '.join(each)}")
    prepare()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder), stages)
        bench.build()
        bench.stages = disturbed
        writes = {stage: bench.writes[stage] for stage in disturbed}
        print(f"{sum(writes.values())} writes of the stages: {json.dumps(writes)}", flush=True)
        not_forked(bench)
        at_every_write(bench, given.writes, chance)
        at_random(bench, given.random, chance)
        full_at_writes(bench, given.full, chance)
        if not may_mount(Path(folder, "disk")):
            print("No right to mount a disk: none is full or read-only.")
        elif given.disks:
            full_disks(bench, tuple(given.disks))
            read_only(bench)
        little_memory(bench, given.others, chance)
        at_once(bench, given.others, chance)
        moving_clocks(bench, chance)
    for what, number in sorted(bench.counts.items()):
        print(f"{number:5} {what}")
    if bench.faults:
        sys.exit(f"{len(bench.faults)} of {sum(bench.counts.values()) + len(bench.faults)} trials failed: see FAULT above")
    print(f"{sum(bench.counts.values())} faults: lost 0, different 0, left over 0, tracebacks 0")


if __name__ == "__main__":
    main()
