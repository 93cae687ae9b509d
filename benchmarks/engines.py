"""The grid's engines: this machine's processes against Ray's workers, and what the nodes of a cluster are sent.

`python -m benchmarks.engines grid [turns]`: the grid of params.yaml, turn by turn by 2 local processes and by 1, by a Ray of 2
nodes and by one of 1 (a core each): seconds, runs an hour, what a run took beyond its epochs, whether weights and ranks are the
same. Its inputs come from `make demo`.
`python -m benchmarks.engines transfer 1000000 384`: a generated spectrum of so many items and so wide, read by 6 tasks on 2:
bytes that came to each node, and bytes that the kernel saw pass between this machine's processes.

Node processes share this machine; each has a core and a scratch of its own. Files go to the folder that `tempfile` chooses.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster as Processes

from pipeline.artifacts import scratch, sha256
from pipeline.grid import cluster
from pipeline.grid.cells import listed_cells
from pipeline.grid.cluster import Cluster
from pipeline.grid.tasks import Engine, Local, Task, run_all, training_task
from pipeline.params import Resources, load_params

LOOKER = """
import os, sys
from pathlib import Path
result = Path(os.environ["SPECTRAN_SCRATCH"], "runs", sys.argv[1])
result.mkdir(parents=True)
(result / "size.txt").write_text(str(Path("data/spectrum/large/U.npy").stat().st_size))
"""


@contextmanager
def nodes(count: int, folder: Path, store: int = 500_000_000) -> Iterator[None]:
    """A cluster that RAY_ADDRESS names: a head without cores, and nodes of one core each."""
    started = Processes(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": store}
    )
    for i in range(count):
        started.add_node(num_cpus=1, memory=2**32, env_vars={"SPECTRAN_SCRATCH": str(folder / f"node{i}")})
    os.environ["RAY_ADDRESS"] = started.address
    try:
        yield
    finally:
        ray.shutdown()
        started.shutdown()
        del os.environ["RAY_ADDRESS"]


def whole_grid(engine: Engine, folder: Path) -> tuple[float, float, dict[str, str]]:
    """Train every run of the grid into `folder`; return the seconds, those of the epochs, and checksums of weights and ranks."""
    params = load_params()
    os.environ["SPECTRAN_SCRATCH"] = str(folder)
    tasks = [training_task(run, cell, params) for cell in listed_cells(params.grid) for run in cell.runs(params)]
    start = time.perf_counter()
    assert run_all(tasks, engine) == []
    seconds = time.perf_counter() - start
    made = {
        f"{task.name} {file}": sha256(task.result / file) for task in tasks for file in ("model.safetensors", "ranks.parquet")
    }
    epochs = sum(json.loads((task.result / "run.json").read_text())["seconds"] for task in tasks)
    return seconds, epochs, made


def grid(turns: int) -> None:
    resources = load_params().resources
    with tempfile.TemporaryDirectory() as name:
        for turn in range(turns):
            folder = Path(name) / str(turn)
            local, _, expected = whole_grid(Local(2), folder / "local")
            shown = [f"2 local processes {local:.1f} s"]
            one = Local(1)
            one.threads = 1
            seconds, epochs, made = whole_grid(one, folder / "one")
            beyond = (seconds - epochs) / (len(made) / 2)
            shown.append(f"1 of one thread {seconds:.1f} s ({seconds / local:.2f} of 2; {beyond:.1f} s a run beyond its epochs)")
            for count in (2, 1):
                with nodes(count, folder / f"of{count}"):
                    seconds, _, made = whole_grid(Cluster(resources), folder / f"ray{count}")
                same = "same" if made == expected else "OTHER"
                rate = len(made) / 2 / seconds * 3600
                shown.append(
                    f"Ray, {count} nodes {seconds:.1f} s ({seconds / local:.2f} of local, {rate:.0f} runs/h, {same} numbers)"
                )
            print("; ".join(shown), flush=True)


def passed() -> int:
    """Bytes that processes of this machine have sent each other through the network."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def transfer(n_items: int, width: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        project = Path(name) / "project"
        for folder in (*cluster.CODE, "data/spectrum/large"):
            (project / folder).mkdir(parents=True)
        (project / "stages/look.py").write_text(LOOKER)
        (project / "params.yaml").write_text("seed: 0\n")
        os.chdir(project)
        cluster.ROOT = project
        U = np.lib.format.open_memmap("data/spectrum/large/U.npy", mode="w+", dtype=np.float32, shape=(n_items, width))
        rng = np.random.default_rng(0)
        for start in range(0, n_items, 50_000):
            U[start : start + 50_000] = rng.random((min(50_000, n_items - start), width), np.float32)
        U.flush()
        tasks = [
            Task(f"look{i}", ("stages.look", f"look{i}"), (Path("data/spectrum/large"),), scratch() / "runs" / f"look{i}")
            for i in range(6)
        ]
        with nodes(2, Path(name)):
            engine = Cluster(Resources())
            before, start = passed(), time.perf_counter()
            assert run_all(tasks, engine) == []
            seconds = time.perf_counter() - start
            between = passed() - before
        print(f"spectrum of {Path('data/spectrum/large/U.npy').stat().st_size:,} bytes, 6 tasks on 2 nodes, {seconds:.1f} s")
        for (found, place), size in engine.received.items():
            print(f"node {found[:8]} received {place}: {size:,} bytes")
        print(f"through the network of this machine: {between:,} bytes")


if __name__ == "__main__":
    if sys.argv[1] == "grid":
        grid(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    else:
        transfer(int(sys.argv[2]), int(sys.argv[3]))
