"""How many directions a table uses: the spectrum of its covariance (SpecTran, Figure 1)."""

import torch
from torch import Tensor


def covariance_spectrum(table: Tensor) -> Tensor:
    """Singular values, decreasing, of the covariance of a table's columns. table: (N, d) -> (d,) float64, on the CPU."""
    centred = table.detach().double()
    centred = centred - centred.mean(dim=0)
    covariance = centred.T @ centred / max(len(centred) - 1, 1)  # (d, d)
    # A few numbers: what follows needs no GPU, and a cumulative sum there has no deterministic kernel.
    return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).cpu()


def shares(values: Tensor) -> Tensor:
    """Singular values divided by their sum; zeros where all rows are equal. (d,) -> (d,)"""
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)


def effective_rank(values: Tensor) -> float:
    """Exponential of the entropy of the shares: d where all are equal, 1 where one has all, 0 where there is no variance."""
    share = shares(values)
    return float(torch.special.entr(share).sum().exp()) if bool(share.any()) else 0.0


def cumulative_share(values: Tensor) -> Tensor:
    """Share of the variance in the m leading directions, for m = 1..d. (d,) -> (d,)"""
    return shares(values).cumsum(0)


def top_share(values: Tensor, count: int = 10) -> float:
    """Share of the variance in the `count` leading directions."""
    return float(shares(values)[:count].sum())
