"""How SpecTran's step grows with the width of the spectrum, r, against Base and against its two products with U.

    python -m benchmarks.width toys [--widths 384 1024 4096] [--steps 8]

The dataset's sequences with a random spectrum of each width; steps of SASRec in turns, dim 128, one thread's CPU time, so that
other work on the machine disturbs little. Both are trained in float32 and with `train.precision: bfloat16`. The two products are
U W^T and its gradient with respect to W, in float32 and with U in bfloat16 (sums in float32).
"""

import time
from argparse import ArgumentParser
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from benchmarks.training import CPU, steps_of
from models.core.adapter import Spectrum
from pipeline.runs import sequences_directory
from pipeline.training.batches import load_sequences

BATCH = 256


def random_spectrum(n_items: int, width: int) -> Spectrum:
    """A spectrum whose singular values fall by four decades; the columns of U have length 1 but are not orthogonal."""
    U = torch.nn.functional.normalize(torch.randn(n_items, width), dim=0)
    return Spectrum(U, torch.logspace(2, -2, width), torch.eye(width), torch.zeros(width))


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def two_products(U: Tensor, dtype: torch.dtype, turns: int) -> float:
    """Median seconds of U W^T and of its gradient with respect to W."""
    U, W, gradient = U.to(dtype), torch.randn(128, U.shape[1], dtype=dtype), torch.randn(len(U), 128, dtype=dtype)
    return median(seconds(lambda: (U @ W.T, gradient.T @ U)) for _ in range(turns))


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 1024, 4096])
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each, of which the median is shown")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sequences = load_sequences(sequences_directory(given.dataset), 10, CPU)
    n_items, users = sequences.n_items, sequences.train[:BATCH]
    spectra = {width: random_spectrum(n_items, width) for width in given.widths}
    names = {"Base": ("base", spectra[given.widths[0]])}
    names |= {f"SpecTran, r = {width:,}": ("spectran", spectrum) for width, spectrum in spectra.items()}
    models = {
        (name, precision): steps_of(given.dataset, adapter, precision=precision, spectrum=spectrum)
        for name, (adapter, spectrum) in names.items()
        for precision in ("float32", "bfloat16")
    }
    times: dict[tuple[str, str], list[float]] = {name: [] for name in models}
    for _ in range(given.steps + 1):  # the first warms up
        for name, steps in models.items():
            times[name].append(seconds(lambda steps=steps: steps.epoch(users)))
    step = {name: median(spent[1:]) for name, spent in times.items()}
    base = step["Base", "float32"]
    print(f"{given.dataset}, {n_items:,} items, a step of {BATCH} users, one thread")
    for name, (_, spectrum) in names.items():
        single, half = step[name, "float32"], step[name, "bfloat16"]
        line = f"{name}: {single:.3f} s, {single / base:.2f} x Base; in bfloat16 {half:.3f} s, {half / base:.2f} x"
        if name != "Base":
            floor, half_floor = (two_products(spectrum.U, dtype, given.steps) for dtype in (torch.float32, torch.bfloat16))
            ratio = (single - base) / floor
            line += f"; beyond Base {ratio:.2f} x its two products ({floor:.3f} s; in bfloat16 {half_floor:.3f} s)"
        print(line)


if __name__ == "__main__":
    main()
