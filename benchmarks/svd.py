"""The svd stage's work against `torch.linalg.svd`, on generated embeddings whose spectrum falls by four decades.

`python -m benchmarks.svd compare 12000 4096`: seconds of both on float32 rows, turn by turn, and their accuracy against float64
(up to 50,000 rows). Ours makes two spectra, plain and centred; one of them is reckoned as the Gram matrix and half of the rest.
`python -m benchmarks.svd alone 1000000 1024 float16`: seconds by step, and the peak of resident memory.

Files go to the folder that `tempfile` chooses (TMPDIR).
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.embedding.spectrum import Decomposition, decompose


def write_embeddings(file: Path, n_items: int, width: int, dtype: str) -> None:
    """Gaussian rows, scaled along orthogonal directions by 1 to 1e-4.5, a block at a time."""
    rng = np.random.default_rng(0)
    right, _ = np.linalg.qr(rng.normal(size=(width, width)).astype(np.float32))
    scaled = (np.geomspace(1, 10**-4.5, width)[:, None] * right).astype(np.float32)
    mapped = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=(n_items, width))
    offset = mapped.offset
    del mapped
    with file.open("r+b") as stream:
        stream.seek(offset)
        for start in range(0, n_items, 2048):
            rows = rng.normal(size=(min(2048, n_items - start), width)).astype(np.float32) @ scaled
            stream.write(rows.astype(dtype).data)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `work` returns, its seconds, and its seconds of CPU, which other programs disturb little."""
    start, cpu = time.perf_counter(), time.process_time()
    return work(), time.perf_counter() - start, time.process_time() - cpu


def ours(folder: Path) -> tuple[Decomposition, float, float]:
    """Decompose the file; print the seconds, return those of one spectrum and of both."""
    made, seconds, cpu = timed(lambda: decompose(folder / "embeddings.npy", folder / "spectrum"))
    steps = ", ".join(f"{name} {value:.1f}" for name, value in made.seconds.items())
    one = made.seconds["gram"] + (made.seconds["factors"] + made.seconds["coordinates"]) / 2
    print(f"both spectra {seconds:.1f} s ({steps}; one {one:.1f}), {cpu:.1f} s of CPU", flush=True)
    return made, one, seconds


def compare(folder: Path, turns: int) -> None:
    rows = torch.from_numpy(np.load(folder / "embeddings.npy"))
    for _ in range(turns):
        made, one, both = ours(folder)
        (_, theirs, _), seconds, cpu = timed(lambda: torch.linalg.svd(rows, full_matrices=False))
        ratios = f"one of ours takes {one / seconds:.2f} of it, both {both / seconds:.2f}"
        print(f"torch.linalg.svd {seconds:.1f} s, {cpu:.1f} s of CPU: {ratios}", flush=True)
    print(f"plain {made.plain}")
    if len(rows) > 50_000:
        return
    expected = torch.linalg.svdvals(rows.double())
    relevant = expected > 1e-4 * expected[0]
    found = torch.from_numpy(np.load(folder / "spectrum/sigma.npy"))
    for name, sigma in (("ours", found), ("torch", theirs)):
        worst = float((sigma.double()[relevant[: len(sigma)]] / expected[relevant] - 1).abs().max())
        print(f"{name}: worst relative error of {int(relevant.sum())} singular values above 1e-4 of the first: {worst:.1e}")


def main() -> None:
    what, n_items, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    dtype = sys.argv[4] if len(sys.argv) > 4 else "float32"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_embeddings(folder / "embeddings.npy", n_items, width, dtype)
        print(f"{n_items:,} x {width} {dtype}, {torch.get_num_threads()} threads", flush=True)
        if what == "compare":
            compare(folder, turns=2 if n_items < 50_000 else 1)
        else:
            made, *_ = ours(folder)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"peak of resident memory {peak:.2f} GiB\nplain {made.plain}")


if __name__ == "__main__":
    main()
