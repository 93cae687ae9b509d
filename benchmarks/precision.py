"""How long a training step takes in bfloat16 (`train.precision: bfloat16`), as a share of float32's.

    python -m benchmarks.precision toys [--steps 8]

Steps of 256 users in turns (of BERT4Rec four steps, one for each pass), dim 128, one thread's CPU time, so that other work on the
machine disturbs little.
"""

from argparse import ArgumentParser
from statistics import median

import torch

from benchmarks.training import CPU, steps_of
from benchmarks.width import BATCH, seconds
from pipeline.runs import sequences_directory
from pipeline.training.batches import load_sequences

PAIRS = [(adapter, "sasrec") for adapter in ("base", "spectran", "whitenrec", "unisrec", "spec_mlp")] + [("base", "bert4rec")]


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each, of which the median is shown")
    given = parser.parse_args()
    torch.set_num_threads(1)
    users = load_sequences(sequences_directory(given.dataset), 10, CPU).train[:BATCH]
    for adapter, backbone in PAIRS:
        both = {name: steps_of(given.dataset, adapter, backbone, precision=name) for name in ("float32", "bfloat16")}
        times: dict[str, list[float]] = {name: [] for name in both}
        for _ in range(given.steps + 1):  # the first warms up
            for name, steps in both.items():
                times[name].append(seconds(lambda steps=steps: steps.epoch(users)))
        single, half = (median(times[name][1:]) for name in both)
        print(f"{adapter}, {backbone}: {half:.3f} s, {half / single:.2f} x float32's {single:.3f} s")


if __name__ == "__main__":
    main()
