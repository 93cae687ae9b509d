"""Time of the svd stage compared with `torch.linalg.svd`, on generated embeddings whose spectrum falls by four and a half
decades.

`python -m benchmarks.svd compare 12000 4096` prints the seconds of both on float32 rows, and their accuracy relative to float64
(up to 50,000 rows). The stage computes two spectra, plain and centred; the time of one is estimated as that of the Gram matrix
and half of the rest. `python -m benchmarks.svd alone 1000000 1024 float16` prints the seconds of the stage by step, and the peak
of resident memory.

Temporary files are in the folder of `tempfile` (TMPDIR).
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
    """Write Gaussian rows, scaled along orthogonal directions by 1 to 10^-4.5, block by block."""
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
    """Return the result of `work`, its seconds, and its seconds of CPU time, which other programs hardly affect."""
    start, cpu = time.perf_counter(), time.process_time()
    return work(), time.perf_counter() - start, time.process_time() - cpu


def decompose_timed(folder: Path) -> tuple[Decomposition, float, float]:
    """Decompose the file and print the seconds; return the result, the seconds of one spectrum, and those of both."""
    result, seconds, cpu = timed(lambda: decompose(folder / "embeddings.npy", folder / "spectrum"))
    steps = ", ".join(f"{name} {value:.1f}" for name, value in result.seconds.items())
    one = result.seconds["gram"] + (result.seconds["factors"] + result.seconds["coordinates"]) / 2
    print(f"both spectra {seconds:.1f} s ({steps}; one {one:.1f}), {cpu:.1f} s of CPU time", flush=True)
    return result, one, seconds


def compare(folder: Path, turns: int) -> None:
    """Print times and accuracy of the stage and of torch."""
    rows = torch.from_numpy(np.load(folder / "embeddings.npy"))
    for _ in range(turns):
        result, one, both = decompose_timed(folder)
        (_, torch_sigma, _), seconds, cpu = timed(lambda: torch.linalg.svd(rows, full_matrices=False))
        ratios = f"one spectrum of the stage takes {one / seconds:.2f} of it, both {both / seconds:.2f}"
        print(f"torch.linalg.svd {seconds:.1f} s, {cpu:.1f} s of CPU time: {ratios}", flush=True)
    print(f"plain {result.plain}")
    if len(rows) > 50_000:
        return
    expected = torch.linalg.svdvals(rows.double())
    relevant = expected > 1e-4 * expected[0]
    stage_sigma = torch.from_numpy(np.load(folder / "spectrum/sigma.npy"))
    for name, sigma in (("stage", stage_sigma), ("torch", torch_sigma)):
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
            result, *_ = decompose_timed(folder)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"peak of resident memory {peak:.2f} GiB\nplain {result.plain}")


if __name__ == "__main__":
    main()
