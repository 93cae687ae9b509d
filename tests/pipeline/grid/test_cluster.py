"""The grid's tasks on a real Ray cluster, whose nodes are processes on this machine."""

import gc
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import UserError
from pipeline.grid import cluster, execution, parcels
from pipeline.grid.cells import Cell
from pipeline.grid.cluster import Cluster
from pipeline.grid.complete import grid_lock, run_all
from pipeline.grid.local import Local
from pipeline.grid.tasks import Task, training_task
from pipeline.params import Resources, load_params
from tests.clone import Project, copy_repository, write_params

ray = pytest.importorskip("ray", reason="Python package ray is missing; `pip install '.[ray]'` runs these tests")
pytestmark = pytest.mark.xdist_group("ray")

ROOT = Path(__file__).parents[3]
# Says that it started, reads its input, waits for a file, leaves a result: `python -m stages.probe NAME DIARY GATE STATUS`.
PROBE = """
import hashlib, os, sys, time
from pathlib import Path
name, diary, gate, status = sys.argv[1:]
node = os.environ["SPECTRAN_SCRATCH"].split("/node/")[0].rpartition("/")[2]
def note(what):
    with open(diary, "a") as file:
        file.write(f"{what} {name} {node} {os.getpid()}\\n")
note("starts")
while not Path(gate).exists():
    time.sleep(0.02)
found = hashlib.sha256(Path("data/sequences/big/numbers.bin").read_bytes()).hexdigest()
result = Path(os.environ["SPECTRAN_SCRATCH"], "runs", name)
result.mkdir(parents=True)
(result / "found.txt").write_text(f"{found} {os.environ['OMP_NUM_THREADS']} {os.environ['CUDA_VISIBLE_DEVICES']}")
print(f"{name} says goodbye")
note("ends")
sys.exit(int(status))
"""


class Stand:
    """A project with an input, tasks that read it, and the notes that they write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.diary, self.gate = root / "diary.txt", root / "gate"
        for folder in ("common", "models", "pipeline", "stages", "data/sequences/big"):
            (root / folder).mkdir(parents=True)
        (root / "stages/__init__.py").touch()
        (root / "stages/probe.py").write_text(PROBE)
        (root / "params.yaml").write_text("seed: 0\n")
        self.fill(3_000_000)

    def fill(self, size: int) -> None:
        content = os.urandom(size)
        (self.root / "data/sequences/big/numbers.bin").write_bytes(content)
        self.digest = hashlib.sha256(content).hexdigest()

    def task(self, name: str, gate: Path | None = None, status: int = 0) -> Task:
        command = ("stages.probe", name, str(self.diary), str(gate or self.gate), str(status))
        return Task(name, command, (Path("data/sequences/big"),), self.root / ".scratch/runs" / name)

    def noted(self, what: str) -> list[list[str]]:
        """Return [name, node, process] of all notes of one kind, in order."""
        lines = self.diary.read_text().splitlines() if self.diary.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(what)]

    def found(self, name: str) -> list[str]:
        return (self.root / ".scratch/runs" / name / "found.txt").read_text().split()


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    built = Stand(tmp_path / "project")
    monkeypatch.setattr(cluster, "ROOT", built.root)
    monkeypatch.chdir(built.root)
    monkeypatch.delenv("SPECTRAN_SCRATCH", raising=False)
    return built


class Nodes:
    """A head without cores, which the driver joins, and nodes with one core each."""

    def __init__(self, folder: Path, count: int, **head: object) -> None:
        from ray.cluster_utils import Cluster as Processes

        # Ray numbers objects anew in each session. One of an earlier test that is dropped later could take a new one along.
        gc.collect()
        self.folder = folder
        # A node that is killed is missed within a second or two.
        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
        self.processes = Processes(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": quick} | head
        )
        self.workers = [self.add(f"node{i}") for i in range(count)]

    def add(self, name: str) -> object:
        environment = {"SPECTRAN_SCRATCH": str(self.folder / name)}
        return self.processes.add_node(num_cpus=1, memory=2**31, env_vars=environment)


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    built = Nodes(tmp_path_factory.mktemp("nodes"), 2)
    yield built
    built.processes.shutdown()


@pytest.fixture
def joined(two_nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.processes.address)
    yield two_nodes
    ray.shutdown()


def test_inputs_reach_each_node_once_and_results_come_back(
    joined: Nodes, stand: Stand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parcels, "PIECE", 1_000_000)
    stand.gate.touch()
    engine = Cluster(Resources(cores=1, memory=0.5))
    tasks = [stand.task(f"task{i}") for i in range(6)]
    assert run_all(tasks, engine) == []
    assert engine.jobs == 2
    for task in tasks:
        assert stand.found(task.name) == [stand.digest, "1"]
        assert task.log.read_text() == f"{task.name} says goodbye\n"
    nodes = {node for _, node, _ in stand.noted("starts")}
    assert nodes == {"node0", "node1"}
    sizes = [size for (_, path), size in engine.received.items() if path == Path("data/sequences/big")]
    assert len(sizes) == 2
    assert all(3_000_000 < size < 3_100_000 for size in sizes), "each node received the input, once"
    assert capsys.readouterr().out.count("received") == 2
    assert run_all([stand.task("later")], engine) == []
    assert sum(engine.received.values()) == sum(sizes) + sum(
        size for (_, path), size in engine.received.items() if path != Path("data/sequences/big")
    ), "a later round sends nothing again"
    diary = [line.split()[:3:2] for line in stand.diary.read_text().splitlines()]
    for node in nodes:
        notes = [what for what, where in diary if where == node]
        assert notes == ["starts", "ends"] * (len(notes) // 2), "a core runs one task at a time"


def test_a_task_that_fails_is_reported_and_not_tried_again(
    joined: Nodes, stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    stand.gate.touch()
    good, bad = stand.task("good"), stand.task("bad", status=3)
    assert run_all([bad, good], Cluster(Resources(memory=0.5))) == [bad]
    assert "bad: FAILED, bad says goodbye" in capsys.readouterr().out
    assert [name for name, *_ in stand.noted("starts")].count("bad") == 1
    assert not bad.result.exists()
    assert stand.found("good") == [stand.digest, "1"]


@pytest.mark.slow
def test_a_run_on_a_node_is_the_run_of_this_machine_to_the_last_digit(
    joined: Nodes, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the local engine: the tiny project has no code
    built = {}
    for name, engine in (("local", Local(os.cpu_count() or 1)), ("ray", Cluster(Resources(cores=1, memory=0.5)))):
        monkeypatch.setenv("SPECTRAN_SCRATCH", str(tmp_path / name))
        params = load_params()
        cell = Cell("tiny", "sasrec", "spectran")
        task = training_task(cell.runs(params)[0], cell, params)
        assert run_all([task], engine) == []
        built[name] = {
            file.name: file.read_bytes()
            for file in task.result.iterdir()
            if file.name not in ("run.json", "analysis.json", "sidecar.json")  # they hold seconds, or checksums of them
        }
        assert execution.is_tested(task.result)
    assert len(built["local"]) >= 5
    assert built["ray"] == built["local"]


def test_a_task_that_no_node_can_hold_is_refused_in_one_line(joined: Nodes, stand: Stand) -> None:
    with pytest.raises(UserError, match=r"a task takes 2 cores, 0\.5 GiB, and no node .* \(.*1 cores, 2\.0 GiB\)") as error:
        run_all([stand.task("wide")], Cluster(Resources(cores=2, memory=0.5)))
    assert "\n" not in str(error.value)
    assert stand.noted("starts") == []


def test_a_cluster_that_is_not_there_is_named_in_one_line(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("127.0.0.1:1", "nowhere", "ray://127.0.0.1:10001"):
        monkeypatch.setenv("RAY_ADDRESS", wrong)
        with pytest.raises(UserError, match=f"RAY_ADDRESS {wrong}: ") as error:
            run_all([stand.task("lost")], Cluster(Resources()))
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_killed_node_loses_its_running_task_and_no_other(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(tmp_path, 2)
    monkeypatch.setenv("RAY_ADDRESS", nodes.processes.address)
    gates = {name: stand.root / f"gate-{name}" for name in ("first", "second", "third")}
    tasks = [stand.task(name, gate) for name, gate in gates.items()]
    failed: list[list[Task]] = []
    driver = threading.Thread(target=lambda: failed.append(run_all(tasks, Cluster(Resources(memory=0.5)))))
    try:
        driver.start()
        until(lambda: len(stand.noted("starts")) == 2)
        (done, _, _), (lost, path, process) = stand.noted("starts")
        gates[done].touch()
        until(lambda: len(stand.noted("starts")) == 3)  # the third, on the core of the one that is done
        nodes.processes.remove_node(nodes.workers[int(path.removeprefix("node"))], allow_graceful=False)
        until(lambda: not Path("/proc", process).exists(), 10)
        for gate in gates.values():
            gate.touch()
        driver.join(60)
        assert failed == [[]]
        assert sorted(name for name, *_ in stand.noted("starts")) == sorted([*gates, lost])
        assert len({node for name, node, _ in stand.noted("starts") if name == lost}) == 2
        assert all(stand.found(name) == [stand.digest, "1"] for name in gates)
    finally:
        for gate in gates.values():
            gate.touch()
        driver.join(60)
        ray.shutdown()
        nodes.processes.shutdown()


DRIVER = """
import sys
from pathlib import Path
from pipeline.grid import cluster, execution, parcels
from pipeline.grid.complete import grid_lock, run_all
from pipeline.params import Resources
from tests.pipeline.grid.test_cluster import Stand
stand = Stand.__new__(Stand)
stand.root = cluster.ROOT = Path.cwd()
stand.diary, stand.gate = stand.root / "diary.txt", stand.root / "gate"
tasks = [stand.task(name, stand.root / f"gate-{name}") for name in ("first", "second", "third")]
with grid_lock():
    sys.exit(len(run_all([task for task in tasks if not task.result.exists()], cluster.Cluster(Resources(memory=0.1)))))
"""


@pytest.mark.slow
def test_a_killed_driver_takes_its_tasks_along_and_the_next_one_keeps_what_came_back(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own Ray: when the driver dies, its tasks' processes end and its lock is released."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = [sys.executable, "-P", "-c", DRIVER]
    gates = {name: stand.root / f"gate-{name}" for name in ("first", "second", "third")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        until(lambda: stand.noted("starts"))
        finishes = stand.noted("starts")[0][0]
        gates[finishes].touch()
        until(lambda: (stand.root / ".scratch/runs" / finishes).exists())
        with pytest.raises(UserError, match=f"another grid is running in .*process {driver.pid} on "), grid_lock():
            pass
        until(lambda: len(stand.noted("starts")) == 3)
        driver.send_signal(signal.SIGKILL)
    for _, _, process in stand.noted("starts"):
        until(lambda process=process: not Path("/proc", process).exists(), 20)
    for gate in gates.values():
        gate.touch()
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
    names = [name for name, *_ in stand.noted("starts")]
    assert {name: names.count(name) for name in gates} == {name: 1 if name == finishes else 2 for name in gates}
    assert all(stand.found(name) == [stand.digest, "1"] for name in gates)


def test_a_cluster_that_is_gone_is_one_line() -> None:
    """Ray's own exceptions would end in a traceback."""
    engine = Cluster.__new__(Cluster)

    def wait(*_: Any, **__: Any) -> None:
        raise ConnectionError("GCS at 10.0.0.1:6379 does not answer\nsecond line")

    engine.ray = SimpleNamespace(wait=wait)
    future: Future[bool] = Future()
    engine._collect({"reference": (Task("a", ("b",), (), Path()), future)}, threading.Event())
    with pytest.raises(UserError, match=r"^the cluster is gone \(.*GCS at 10\.0\.0\.1:6379 does not answer\); start one and run"):
        future.result()


@pytest.mark.slow
def test_several_tasks_share_a_gpu(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray believes the declared GPU: two tasks with half of it run at the same time, the third after them."""
    nodes = Nodes(tmp_path, 0)
    nodes.processes.add_node(num_cpus=4, num_gpus=1, memory=2**32, env_vars={"SPECTRAN_SCRATCH": str(tmp_path / "node0")})
    monkeypatch.setenv("RAY_ADDRESS", nodes.processes.address)
    gates = [stand.root / f"gate{i}" for i in range(3)]
    tasks = [stand.task(f"task{i}", gate) for i, gate in enumerate(gates)]
    failed: list[list[Task]] = []
    engine = Cluster(Resources(memory=0.5, gpus=0.5))
    driver = threading.Thread(target=lambda: failed.append(run_all(tasks, engine)))
    try:
        driver.start()
        until(lambda: len(stand.noted("starts")) == 2)
        time.sleep(2)
        assert len(stand.noted("starts")) == 2
        assert engine.jobs == 2
        for gate in gates:
            gate.touch()
        driver.join(60)
        assert failed == [[]]
        assert all(stand.found(task.name) == [stand.digest, "1", "0"] for task in tasks)
    finally:
        for gate in gates:
            gate.touch()
        driver.join(60)
        ray.shutdown()
        nodes.processes.shutdown()


@pytest.mark.slow
def test_gpus_that_no_run_takes_are_named(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = Nodes(tmp_path, 0)
    nodes.processes.add_node(num_cpus=1, num_gpus=2, memory=2**32)
    monkeypatch.setenv("RAY_ADDRESS", nodes.processes.address)
    try:
        assert run_all([], Cluster(Resources(memory=0.5))) == []
        assert "the cluster has 2 GPUs, and runs take none: set `resources.gpus`" in capsys.readouterr().out
    finally:
        ray.shutdown()
        nodes.processes.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["free", "full"])
def test_a_full_object_store_spills_or_is_named_in_one_line(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    """Inputs of 300 MB pass through object stores of 80 MB on the driver and the node."""
    stand.fill(300_000_000)
    stand.gate.touch()
    full = {"RAY_local_fs_capacity_threshold": "0.001"} if disk == "full" else {}
    nodes = Nodes(tmp_path, 0, object_store_memory=80_000_000, env_vars=full)
    environment = {"SPECTRAN_SCRATCH": str(tmp_path / "node0")}
    nodes.processes.add_node(num_cpus=1, memory=2**31, object_store_memory=80_000_000, env_vars=environment)
    monkeypatch.setenv("RAY_ADDRESS", nodes.processes.address)
    try:
        if disk == "free":
            assert run_all([stand.task("large")], Cluster(Resources(memory=0.5))) == []
            assert stand.found("large") == [stand.digest, "1"]
        else:
            with pytest.raises(UserError, match=r"data/sequences/big does not fit into Ray's object store .*spill") as error:
                run_all([stand.task("large")], Cluster(Resources(memory=0.5)))
            assert "\n" not in str(error.value)
    finally:
        ray.shutdown()
        nodes.processes.shutdown()


@pytest.mark.slow
def test_the_grid_of_a_checkout_on_ray(tmp_path: Path) -> None:
    """`stages.grid --engine ray` gives the same choices and cells as `stages.grid`, and DVC has them.

    Of two at once, the second is refused.
    """
    root = tmp_path / "checkout"
    params = copy_repository(root)
    params["grid"]["tuning"] |= {"datasets": ["demo"], "losses": ["info_nce"], "trials": 2}
    params["resources"]["memory"] = 0.5
    write_params(root, params)
    here = Project(root)
    here.run("git", "init", "-q")
    here.commit()
    here.run("dvc", "repro", "data/dvc.yaml:svd@demo")
    there = Project(tmp_path / "other")
    shutil.copytree(root, there.root, symlinks=True)
    grid = (sys.executable, "-m", "stages.grid")
    here.run(*grid, "--jobs", str(os.cpu_count()))
    command = [*grid, "--engine", "ray"]
    with subprocess.Popen(command, cwd=there.root, env=there.environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        for line in first.stdout:
            if ": done" in line:
                break
        refused = there.run(*command, fails=True)
        printed = first.stdout.read()
    assert re.fullmatch(rf"grid: another grid is running in .*\(process {first.pid} on .*\); wait for it, or stop it\n", refused)
    assert first.returncode == 0
    assert "[6/6]" in printed
    for name in ("demo-sasrec-base-info_nce", "demo-sasrec-spectran-info_nce"):
        choice = Path(f"grid/tuned/{name}.yaml")
        assert (there.root / choice).read_bytes() == (here.root / choice).read_bytes()
    for cell in (
        "demo-sasrec-base",
        "demo-sasrec-spectran",
        "demo-sasrec-base-info_nce-tuned",
        "demo-sasrec-spectran-info_nce-tuned",
    ):
        files = [file.relative_to(here.root) for file in (here.root / "grid/cells" / cell).rglob("*") if file.is_file()]
        assert len(files) > 8
        for file in files:
            if file.name not in ("metrics.csv", "run.json", "analysis.json", "sidecar.json"):  # seconds
                assert (there.root / file).read_bytes() == (here.root / file).read_bytes(), file
    assert (there.root / "metrics/tables/table2.md").read_text() == (here.root / "metrics/tables/table2.md").read_text()
    assert "all cells and tables are up to date" in there.run(*command), "no cluster is started for nothing"
    assert "--jobs is for this machine" in there.run(*command, "--jobs", "2", fails=True)
