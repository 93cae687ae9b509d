"""Measures how many directions a table uses, from the spectrum of its covariance (SpecTran, Figure 1)."""

import torch
from torch import Tensor


def covariance_spectrum(table: Tensor) -> Tensor:
    """Return the eigenvalues, decreasing, of the covariance of a table's columns. (N, d) -> (d,) float64, on the CPU."""
    centred = table.detach().double()
    centred = centred - centred.mean(dim=0)
    covariance = centred.T @ centred / max(len(centred) - 1, 1)  # (d, d)
    # To the CPU: only d numbers, and a cumulative sum on a GPU has no deterministic kernel.
    return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).cpu()


def shares(values: Tensor) -> Tensor:
    """Return eigenvalues divided by their sum; zeros if all are zero. (d,) -> (d,)"""
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)


def effective_rank(values: Tensor) -> float:
    """Return the exponential of the entropy of the shares: d if all are equal, 1 if one has all, 0 without variance.

    The effective rank of Roy and Vetterli (2007).

    >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    share = shares(values)
    return float(torch.special.entr(share).sum().exp()) if bool(share.any()) else 0.0


def cumulative_share(values: Tensor) -> Tensor:
    """Return the share of the variance in the m leading directions, for m = 1 to d. (d,) -> (d,)"""
    return shares(values).cumsum(0)


def top_share(values: Tensor, count: int = 10) -> float:
    """Return the share of the variance in the `count` leading directions, between 0 and 1."""
    return float(shares(values)[:count].sum())
