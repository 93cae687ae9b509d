"""Where the seconds of a grid go: steps, validation, saving, the test, start-up, and waiting for the last run.

    python -m benchmarks.grid toys [--backbone sasrec] [--adapters base spectran …] [--precision bfloat16] [--jobs 2] [--epochs N]

Trains and tests every adapter of the grid with dim 128, from the spectrum to ranks, in processes of one thread, as the grid does:
`--jobs` at a time, each run to early stopping unless --epochs ends it before. Also prints each run's validation NDCG@20. Scratch
is a temporary folder, so nothing is reused and nothing kept. Needs `dvc repro data/dvc.yaml:svd@DATASET`. Wall-clock time: run
nothing else on the machine.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.params import load_params
from pipeline.runs import Run

PHASES = ("steps", "validation", "saving", "test", "start-up")
MARK = "seconds: "


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--backbone", default="sasrec")
    parser.add_argument("--adapters", nargs="+", default=load_params().grid.adapters)
    parser.add_argument("--precision", default=load_params().train.precision)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--alone", metavar="ADAPTER", help="one run in this process; the seconds of each phase as JSON")
    given = parser.parse_args()
    if given.alone:
        print(MARK + json.dumps(one_run(given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "SPECTRAN_SCRATCH": folder}

        def process(adapter: str) -> tuple[str, dict[str, float], float]:
            command = [sys.executable, "-m", "benchmarks.grid", *sys.argv[1:], "--alone", adapter]
            start = time.perf_counter()
            printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            return adapter, json.loads(printed.rpartition(MARK)[2]), time.perf_counter() - start

        start = time.perf_counter()
        with ThreadPoolExecutor(given.jobs) as pool:
            runs = list(pool.map(process, given.adapters))
        whole = time.perf_counter() - start
    print(f"{given.dataset}, {given.backbone}: {len(runs)} runs, {given.jobs} at a time, {whole:.0f} s")
    total = dict.fromkeys(PHASES, 0.0)
    for adapter, seconds, span in runs:
        seconds["start-up"] = span - sum(seconds[phase] for phase in PHASES[:-1])
        total = {phase: total[phase] + seconds[phase] for phase in PHASES}
        shown = ", ".join(f"{phase} {seconds[phase]:.1f}" for phase in PHASES)
        print(f"{adapter:10} {span:7.1f} s, {seconds['epochs']:.0f} epochs: {shown}; validation {seconds['validated']:.4f}")
    total["waiting"] = given.jobs * whole - sum(span for _, _, span in runs)
    print(", ".join(f"{phase} {100 * spent / (given.jobs * whole):.1f} %" for phase, spent in total.items()))


def one_run(given: Namespace) -> dict[str, float]:
    """Train and test a run; return the seconds of every phase but start-up, its epochs and its validation NDCG@20."""
    from pipeline.evaluation.evaluate import evaluate_run
    from pipeline.grid.execution import trained
    from pipeline.training import loop

    seconds = dict.fromkeys(PHASES[:-1], 0.0)

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds[phase] += time.perf_counter() - start

        return call

    loop.Steps.epoch = timed("steps", loop.Steps.epoch)  # type: ignore[method-assign]
    loop.evaluate_ranks = timed("validation", loop.evaluate_ranks)
    loop._save = timed("saving", loop._save)
    train = {"precision": given.precision} | ({"epochs": given.epochs} if given.epochs else {})
    place = {"dataset": given.dataset, "backbone": given.backbone, "adapter": given.alone}
    run = Run.of(load_params(), **place, dim=128, seed=0, changes={"train": train})
    trained(run)
    timed("test", evaluate_run)(run)
    training = json.loads((run.scratch / "training.json").read_text())
    return {**seconds, "epochs": training["epochs"], "validated": training["validation"]["NDCG@20"]}


if __name__ == "__main__":
    main()
