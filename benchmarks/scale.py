"""Seconds and memory of training steps and of a ranking, by size of the catalogue, with generated data.

    python -m benchmarks.scale [--items 10000 100000 1000000] [--steps 100] [--width 384]

For every size and optimiser, a process trains SpecTran on SASRec (dim 128, 64 negatives, batches of 256 users) for the arguments
number of steps, then ranks 1,000 users. The peak of its resident memory includes mapped pages of the spectrum, which the kernel
can free. There are 10 interactions per item.

    python -m benchmarks.scale rows

The time of a step that builds only the rows of the items that a batch references, divided by the time of a step that builds the
whole table, by the ratio of the catalogue's size to the number of references.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import torch

import models.core.recommender
from pipeline.artifacts import SIDECAR, sha256, write_signed
from pipeline.device import select_device
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training.batches import SplitSequences, load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import build, evaluate_ranks, make_optimisers, use_deterministic_kernels
from pipeline.training.steps import Steps

CPU = torch.device("cpu")
BATCH, RANKED, PER_USER = 256, 1000, 10


def generate(folder: Path, n_items: int, width: int) -> None:
    """Write artifacts of the stages svd and preprocess: a decreasing spectrum, and n_items users with 10 items each."""
    rng = np.random.default_rng(0)
    spectrum, sequences = folder / "spectrum", folder / "sequences"
    spectrum.mkdir()
    sequences.mkdir()
    U = np.lib.format.open_memmap(spectrum / "U.npy", mode="w+", dtype=np.float32, shape=(n_items, width))
    for start in range(0, n_items, 50_000):
        part = rng.standard_normal((min(50_000, n_items - start), width), np.float32)
        U[start : start + 50_000] = part / n_items**0.5
    U.flush()
    np.save(spectrum / "sigma.npy", (n_items**0.5 / np.arange(1, width + 1)).astype(np.float32))
    np.save(spectrum / "V.npy", np.eye(width, dtype=np.float32))
    np.save(spectrum / "mean.npy", np.zeros(width, np.float32))
    items = (n_items * rng.random((n_items, PER_USER)) ** 2).astype(np.int32)  # some are more popular than others
    users = pl.DataFrame(
        {"user_id": np.arange(n_items).astype(str), "items": items.tolist()}, schema_overrides={"items": pl.List(pl.Int32)}
    )
    users.write_parquet(sequences / "sequences.parquet")
    pl.DataFrame({"item_id": np.arange(n_items).astype(str)}).write_parquet(sequences / "items.parquet")
    for artifact in (spectrum, sequences):
        write_signed(artifact / SIDECAR, {"files": {file.name: sha256(file) for file in artifact.iterdir()}})


def steps_of(folder: Path, optimiser: str, adapter: str) -> tuple[Steps, SplitSequences]:
    """Return the training steps of an adapter on SASRec, and the sequences, of the generated data."""
    select_device()
    use_deterministic_kernels()
    run = Run.of(load_params(), backbone="sasrec", adapter=adapter, dim=128, changes={"train": {"optimiser": optimiser}})
    torch.manual_seed(0)
    model = build(run, load_spectrum(folder / "spectrum"))
    options = run.settings["train"]
    steps = Steps(model, make_optimisers(model, options, CPU), torch.Generator().manual_seed(0), nullcontext, BATCH)
    return steps, load_sequences(folder / "sequences", options["max_history"], CPU)


def measure(folder: Path, optimiser: str, adapter: str, count: int) -> dict[str, float]:
    """Return the seconds of a step (median) and of ranking 1,000 users, and the memory of this process in GiB."""
    steps, sequences = steps_of(folder, optimiser, adapter)
    steps.model.train()
    users = torch.randperm(len(sequences.train), generator=torch.Generator().manual_seed(0))
    times = []
    for i in range(count):
        batch = sequences.train[users[(i * BATCH + torch.arange(BATCH)) % len(users)]]
        start = time.perf_counter()
        steps.step(batch)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    evaluate_ranks(steps.model, sequences.valid_history[:RANKED], sequences.valid_target[:RANKED])
    ranking = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    gib = {name: int(status[field].split()[0]) / 2**20 for name, field in (("peak", "VmHWM"), ("own", "RssAnon"))}
    return {"step": median(times), "total": sum(times), "ranking": ranking} | gib


def sizes(items: list[int], width: int, count: int, adapter: str, optimisers: list[str]) -> None:
    """Print time and memory by size of the catalogue and optimiser."""
    print(f"{torch.get_num_threads()} threads, {adapter}, {count} steps, {RANKED} users ranked")
    print(f"{'items':>10}  {'optimiser':12}{'step, ms':>9}{'steps, s':>9}{'ranking, s':>11}{'peak, GiB':>10}{'own, GiB':>9}")
    for n_items in items:
        with tempfile.TemporaryDirectory() as name:
            generate(Path(name), n_items, width)
            for optimiser in optimisers:
                command = [sys.executable, "-m", "benchmarks.scale", "one", name, optimiser, adapter, str(count)]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
                result = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{n_items:>10,}  {optimiser:12}{1e3 * result['step']:9.0f}{result['total']:9.1f}{result['ranking']:11.2f}"
                    f"{result['peak']:10.2f}{result['own']:9.2f}",
                    flush=True,
                )


def rows(width: int) -> None:
    """Print the relative time of building only the rows that a batch references."""
    for adapter in ("base", "spectran"):
        line = []
        for multiple in (1, 2, 3, 4, 6):
            with tempfile.TemporaryDirectory() as name:
                references = BATCH * 7 * 66  # per user 7 tokens and 7 targets with 64 negatives each
                generate(Path(name), multiple * references, width)
                steps, sequences = steps_of(Path(name), "adam", adapter)
                times: dict[int, list[float]] = {0: [], 10**9: []}  # rows only; the whole table
                for turn in range(6):
                    for setting, step_times in times.items():
                        models.core.recommender.ROWS_FROM = setting
                        start = time.perf_counter()
                        steps.step(sequences.train[turn * BATCH : (turn + 1) * BATCH])
                        step_times.append(time.perf_counter() - start)
                line.append(f"{multiple} x: {median(times[0][1:]) / median(times[10**9][1:]):.2f}")
        print(f"{adapter:10}{', '.join(line)}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        folder, optimiser, adapter, count = sys.argv[2:]
        print(json.dumps(measure(Path(folder), optimiser, adapter, int(count))))
        return
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("sizes", "rows"), default="sizes")
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--adapter", default="spectran")
    parser.add_argument("--optimisers", nargs="+", default=["adam", "sparse_adam"])
    arguments = parser.parse_args()
    if arguments.what == "rows":
        rows(arguments.width)
    else:
        sizes(arguments.items, arguments.width, arguments.steps, arguments.adapter, arguments.optimisers)


if __name__ == "__main__":
    main()
