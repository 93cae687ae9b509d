"""The full spectrum of the item embeddings, once per (dataset, encoder); `dim` only slices it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.adapters.adapter import Spectrum
from models.errors import UserError

BLOCK = 4096  # rows at a time
FILES = ("U", "sigma", "V", "mean")
ROUNDING = 1e-6  # of the plain spectrum's first value: what centring or the Gram matrix leave of nothing


@dataclass
class Decomposition:
    """A spectrum, and how good it is: ||E - U S V^T|| / ||E||, and the largest entry of |U^T U - I|."""

    spectrum: Spectrum
    residual: float
    orthogonality: float


def decompose(embeddings: np.ndarray, rank_rtol: float | None = None) -> tuple[Decomposition, Decomposition]:
    """Plain and centred thin SVD of E (N, l) from one pass over its Gram matrix, accumulated in float64.

    G = E^T E and G_c = G - N mean mean^T (N >= l); where N < l the SVD is direct. Values up to `rank_rtol` times the first count
    as zero; by default max(N, l) times the float32 epsilon, as numpy's matrix_rank. Signs: the largest entry of every column of
    V is positive.
    Raises UserError for rows that are not finite, and where nothing is left.
    """
    n_items, width = embeddings.shape
    rtol = rank_rtol or max(n_items, width) * float(np.finfo(np.float32).eps)
    total = torch.zeros(width, dtype=torch.float64)
    gram = torch.zeros(width, width, dtype=torch.float64)
    for start, block in _blocks(embeddings):
        if not bool(torch.isfinite(block).all()):
            row = start + int((~torch.isfinite(block)).any(1).nonzero()[0])
            raise UserError(f"row {row} of the embeddings holds NaN or infinity; embed again (item {row} of items.parquet)")
        total += block.sum(0)
        if n_items >= width:
            gram += block.T @ block
    mean = total / n_items
    zero = torch.zeros_like(mean)
    if n_items >= width:
        factors = (_from_gram(gram), _from_gram(gram - n_items * torch.outer(mean, mean)))
    else:
        whole = torch.from_numpy(np.asarray(embeddings, dtype=np.float64))
        factors = (_direct(whole), _direct(whole - mean))
    floor = ROUNDING * float(factors[0][0][0])
    plain, centred = (_finish(embeddings, *f, m, rtol, floor) for f, m in zip(factors, (zero, mean), strict=True))
    return plain, centred


def _blocks(embeddings: np.ndarray) -> Iterator[tuple[int, Tensor]]:
    for start in tqdm(range(0, len(embeddings), BLOCK), desc="decomposing", unit=" blocks", delay=2):
        yield start, torch.from_numpy(np.asarray(embeddings[start : start + BLOCK], dtype=np.float64))


def _from_gram(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, decreasing, and V (l, l) from E^T E."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)


def _direct(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and V (l, min(N, l)) by a direct SVD."""
    _, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    return sigma, vh.T


def _finish(embeddings: np.ndarray, sigma: Tensor, v: Tensor, mean: Tensor, rtol: float, floor: float) -> Decomposition:
    """Cut to the numerical rank, fix signs, make U = (E - 1 mean^T) V / sigma block by block, and measure."""
    rank = int((sigma > max(rtol * float(sigma[0]), floor)).sum())
    if rank == 0:
        raise UserError("the embeddings are all equal: no direction is left; check the titles and the encoder")
    sigma, v = sigma[:rank], v[:, :rank]
    largest = v.gather(0, v.abs().argmax(0, keepdim=True))
    v = v * largest.sign()
    u = torch.empty(len(embeddings), rank, dtype=torch.float32)
    gram = torch.zeros(rank, rank, dtype=torch.float64)
    missed = energy = 0.0
    for start, block in _blocks(embeddings):
        block = block - mean
        rows = block @ v / sigma
        u[start : start + len(rows)] = rows.float()
        gram += rows.T @ rows
        missed += float((block - rows * sigma @ v.T).square().sum())
        energy += float(block.square().sum())
    gram.diagonal().sub_(1)
    spectrum = Spectrum(u, sigma.float(), v.float().contiguous(), mean.float())
    return Decomposition(spectrum, (missed / energy) ** 0.5, float(gram.abs().max()))


def save_spectrum(spectrum: Spectrum, directory: Path) -> None:
    """Write U, sigma, V, mean as NumPy files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        np.save(directory / f"{name}.npy", getattr(spectrum, name).numpy())


def load_spectrum(directory: Path, device: torch.device | None = None) -> Spectrum:
    """Read a spectrum artifact, mapped from disk until it is moved; its centred twin is read when first asked for."""

    def read(folder: Path, load_centred: Callable[[], Spectrum] | None) -> Spectrum:
        U, sigma, V, mean = (_read(folder / f"{name}.npy").to(device or torch.device("cpu")) for name in FILES)
        return Spectrum(U, sigma, V, mean, load_centred)

    return read(directory, lambda: read(directory / "centred", None))


def _read(path: Path) -> Tensor:
    try:
        # Copy on write: torch wants writable memory, and the file stays as it is.
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc repro` of the svd stage makes it") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `dvc repro` again") from None
