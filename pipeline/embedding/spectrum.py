"""The full spectrum of the item embeddings, computed once per dataset and encoder; `dim` only slices it."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import UserError
from models.core.adapter import Spectrum
from pipeline.artifacts import open_array
from pipeline.embedding.processes import Processes

BLOCK = 1024  # rows at a time
PANEL = 512  # columns of the Gram matrix at a time
PROBES = 16  # random vectors that estimate the quality
ROUNDING = 1e-6  # relative to the first singular value: rounding can make a singular value of 0 appear this large


@dataclass
class Quality:
    """The quality of a stored spectrum.

    rank: stored directions. below_precision: directions that rounding alone can explain, and that were dropped.
    residual: ||E - U S V^T|| / ||E||. orthogonality: ||U^T U - I||. Both are Frobenius norms of the stored numbers, estimated
    with PROBES random sign vectors. The estimate of the square is unbiased; its error is about 20 % at worst (one direction).
    """

    rank: int
    below_precision: int
    residual: float
    orthogonality: float


@dataclass
class Decomposition:
    """The result for E (N, l): quality of both spectra, seconds by step, `precision` relative to the first singular value."""

    shape: tuple[int, int]
    plain: Quality
    centred: Quality
    precision: float
    seconds: dict[str, float]

    def measured(self) -> dict[str, Any]:
        """Return precision and qualities, rounded to three digits, for the sidecar."""
        return {
            "precision": _three_digits(self.precision),
            **{
                name: {key: _three_digits(value) for key, value in asdict(quality).items()}
                for name, quality in (("plain", self.plain), ("centred", self.centred))
            },
        }


def _three_digits(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.2e}")


def decompose(source: Path, directory: Path, rank_rtol: float | None = None, processes: Processes | None = None) -> Decomposition:
    """Write the thin SVD of E (N, l), the .npy file `source`, to `directory`, and that of E - 1 mean^T to `directory/centred`.

    The first pass over E computes G = E^T E in float64; the eigenvectors of G, and of G_c = G - N mean mean^T, are the columns
    of V. If N < l, the SVD is computed directly. A second pass computes U = E V / sigma block by block and writes it. Memory: a
    few l x l matrices and one block of rows. With several processes, each reads and writes its share of the rows.

    Directions up to `rank_rtol` times the first value are dropped, and in any case those below the precision. The precision is
    the larger of ROUNDING times the first value and eps ||E|| (1/sqrt(N) + 1/sqrt(l)), which rounding E to its own type adds to
    a spectrum. Signs: the entry of largest magnitude in every column of V is positive.

    Raises UserError for an unusable file, for rows that are not finite, and if no direction is left.
    """
    processes = processes or Processes()
    blocks = _Blocks(source, processes)
    n_items, width = blocks.shape
    clock = [time.perf_counter()]
    mean, gram = _moments(blocks, with_gram=n_items >= width)
    clock.append(time.perf_counter())
    factors = _factors(mean, gram, blocks)
    first, energy = float(factors[0][0][0]), float(factors[0][0].square().sum())
    floor = max(ROUNDING * first, float(np.finfo(blocks.dtype).eps) * energy**0.5 * (n_items**-0.5 + width**-0.5))
    clock.append(time.perf_counter())
    sides = [
        _Side(folder, *factor, m, n_items, max((rank_rtol or 0) * float(factor[0][0]), floor), floor)
        for folder, factor, m in zip((directory, directory / "centred"), factors, (torch.zeros_like(mean), mean), strict=True)
    ]
    del gram, factors
    if processes.first:
        for side in sides:
            side.create()
    processes.gather(None)
    for start, block in blocks.read("coordinates of the items"):
        for side in sides:
            side.add(start, block)
    plain, centred = (side.finish(processes) for side in sides)
    clock.append(time.perf_counter())
    steps = dict(zip(("gram", "factors", "coordinates"), np.diff(clock).tolist(), strict=True))
    return Decomposition(blocks.shape, plain, centred, floor / first, steps)


class _Blocks:
    """The share of this process in the rows of a file, read block by block."""

    def __init__(self, source: Path, processes: Processes) -> None:
        rows = open_array(source, "embed", "r")
        if rows.ndim != 2 or 0 in rows.shape or rows.dtype not in (np.float16, np.float32, np.float64):
            raise UserError(f"{source} has type {rows.dtype} and shape {rows.shape}, expected a matrix of floats; embed again")
        self.source, self.processes = source, processes
        self.shape: tuple[int, int] = rows.shape
        self.dtype = rows.dtype
        self.starts = np.array_split(np.arange(0, len(rows), BLOCK), processes.count)[processes.rank].tolist()

    def read(self, what: str) -> Iterator[tuple[int, Tensor]]:
        """Yield the index of the first row, and the rows (B, l) as float64 on the device, of every block. what: for the bar."""
        for start in tqdm(self.starts, desc=what, unit=" blocks", delay=2, disable=not self.processes.first):
            yield start, self.rows(start, start + BLOCK)

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the rows from `start` to `stop` (exclusive), (B, l) float64, on the device."""
        # The file is mapped for each block anew, because the pages of an open map stay in memory.
        rows = np.array(open_array(self.source, "embed", "r")[start:stop])
        return torch.from_numpy(rows).to(self.processes.device).double()


def _moments(blocks: _Blocks, with_gram: bool) -> tuple[Tensor, Tensor | None]:
    """Return the mean (l,) and, if asked for, the upper triangle of E^T E (l, l). Raises UserError if a row is not finite."""
    n_items, width = blocks.shape
    total = torch.zeros(width, dtype=torch.float64, device=blocks.processes.device)
    gram = total.new_zeros(width, width) if with_gram else None
    unusable = n_items
    for start, block in blocks.read("Gram matrix"):
        finite = torch.isfinite(block).all(1)
        if not bool(finite.all()):
            unusable = start + int((~finite).nonzero()[0])
            break
        total += block.sum(0)
        if gram is not None:
            for i in range(0, width, PANEL):
                gram[i : i + PANEL, i:].addmm_(block[:, i : i + PANEL].T, block[:, i:])
    unusable = min(blocks.processes.gather(unusable))
    if unusable < n_items:
        raise UserError(f"row {unusable} of the embeddings holds NaN or infinity; embed again (item {unusable} of items.parquet)")
    blocks.processes.add(total, *(() if gram is None else (gram,)))
    return total / n_items, gram


def _factors(mean: Tensor, gram: Tensor | None, blocks: _Blocks) -> list[tuple[Tensor, Tensor]]:
    """Return singular values (k,), decreasing, and V (l, k) of E and of E - 1 mean^T, k = min(N, l).

    One process computes each of the two and sends it to the others.
    """
    processes = blocks.processes
    matrix = blocks.rows() if gram is None else gram
    solve = _from_rows if gram is None else _from_gram
    k, width = min(blocks.shape), blocks.shape[1]
    factors = []
    for side in range(2):
        if side == 1:
            matrix = matrix.sub_(mean) if gram is None else matrix.addr_(mean, mean, alpha=-blocks.shape[0])
        is_owner = processes.rank == side % processes.count
        factors.append(solve(matrix) if is_owner else (mean.new_empty(k), mean.new_empty(width, k)))
    for side, (sigma, V) in enumerate(factors):
        processes.copy(sigma, side % processes.count)
        processes.copy(V, side % processes.count)
    return factors


def _from_gram(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values and V from the upper triangle of E^T E."""
    if gram.is_cuda:
        values, vectors = torch.linalg.eigh(gram, UPLO="U")
    else:  # NumPy's OpenBLAS needs three quarters of the time of torch's MKL
        values, vectors = map(torch.from_numpy, np.linalg.eigh(gram.numpy(), UPLO="U"))
    return values.flip(0).clamp(min=0).sqrt(), vectors.flip(1).contiguous()


def _from_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values and V by a direct SVD."""
    _, sigma, vh = torch.linalg.svd(rows, full_matrices=False)
    return sigma, vh.T.contiguous()


class _Side:
    """The plain or the centred spectrum, while U is computed, written and measured block by block.

    Example: E = [[3, 0], [0, 4], [3, 4]], so N = 3, l = 2, mean = [2, 8/3].

    - The plain side has G = E^T E = [[18, 12], [12, 32]], whose eigenvalues are 38.89 and 11.11: sigma = [6.236, 3.333] and
      V = [[0.498, 0.867], [0.867, -0.498]]. A row e of E gets the row u = e V / sigma of U: [3, 4] gets [0.796, 0.183].
    - The centred side has G_c = G - 3 mean mean^T = [[6, -4], [-4, 10.667]]: sigma = [3.601, 1.924]. It uses the same
      formula on e - mean. Instead of centring a block, it adds the constant offset -mean V / sigma to each row.

    So one read of a block serves both sides. Each writes its rows of U into the file at the block's position, and adds to two
    sums over all blocks, which give the quality at the end. With random sign vectors p (l,) and q (r,):

    - missed: ||(E - 1 mean^T) p - U sigma V^T p||^2, whose expectation is ||E - 1 mean^T - U sigma V^T||^2;
    - returned: U^T U q, which is q if U has orthonormal columns.
    """

    def __init__(self, directory: Path, sigma: Tensor, V: Tensor, mean: Tensor, n_items: int, drop: float, floor: float) -> None:
        rank = int((sigma > drop).sum())
        if rank == 0:
            raise UserError("the embeddings are all equal, so their spectrum is empty; check the titles and the encoder")
        self.below = min(n_items, len(mean)) - int((sigma > floor).sum())
        self.energy = float(sigma.square().sum())
        self.directory, self.n_items, self.mean = directory, n_items, mean
        sigma, V = sigma[:rank], V[:, :rank]
        V = V * V.gather(0, V.abs().argmax(0, keepdim=True)).sign()
        self.sigma, self.V, self.weights = sigma.float(), V.float(), V / sigma  # (r,), (l, r), (l, r)
        self.offset = -mean @ self.weights  # (r,)
        signs = torch.randint(2, (len(mean) + rank, PROBES), generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.probes, self.u_probes = signs.to(V).split([len(mean), rank])
        images = self.sigma.double()[:, None] * (self.V.double().T @ self.probes)  # (r, p)
        self.both = torch.cat([images, self.u_probes], 1)  # (r, 2p)
        self.missed = mean.new_zeros(())
        self.returned = torch.zeros_like(self.u_probes)

    def create(self) -> None:
        """Write sigma, V and mean, and allocate the file of U."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in ("sigma", "V", "mean"):
            np.save(self.directory / f"{name}.npy", getattr(self, name).float().cpu().numpy())
        np.lib.format.open_memmap(self.directory / "U.npy", mode="w+", dtype=np.float32, shape=(self.n_items, len(self.sigma)))

    def add(self, start: int, block: Tensor) -> None:
        """Write the rows of U for a block of rows (B, l) of E, and add to the sums that measure quality. start: the first row."""
        rows = torch.addmm(self.offset, block, self.weights).float()  # (B, r)
        file = self.directory / "U.npy"
        U = open_array(file, "svd", "r")
        with file.open("r+b") as stream:  # not through the memory map, because a full disk would then crash the process
            stream.seek(U.offset + start * U.strides[0])
            stream.write(rows.cpu().numpy().data)
        rows = rows.double()
        product, u_product = (rows @ self.both).split(PROBES, 1)  # U sigma V^T p and U q, (B, p) each
        self.missed += (block @ self.probes - self.mean @ self.probes - product).square().sum()
        self.returned += rows.T @ u_product

    def finish(self, processes: Processes) -> Quality:
        """Add up the sums of all processes and return the quality."""
        processes.add(self.missed, self.returned)
        residual = (float(self.missed) / PROBES / self.energy) ** 0.5
        orthogonality = float((self.returned - self.u_probes).norm()) / PROBES**0.5
        return Quality(len(self.sigma), self.below, residual, orthogonality)


def coordinates(spectrum: Spectrum, embeddings: Tensor) -> Tensor:
    """Return the rows of U for other items, u = (e - mean) V / sigma. embeddings: (M, l). Returns (M, r) float32.

    The embeddings must come from the same encoder, pooling and normalisation as those of the spectrum. Raises UserError if the
    width differs.
    """
    if embeddings.shape[-1] != len(spectrum.mean):
        raise UserError(
            f"embeddings have {embeddings.shape[-1]} columns, the spectrum's {len(spectrum.mean)}; use the spectrum's encoder"
        )
    moved = embeddings.double() - spectrum.mean.double()
    return (moved @ spectrum.V.double() / spectrum.sigma.double()).float()
