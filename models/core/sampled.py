"""Products with chosen rows of a table, and weighted sums of chosen rows, without copying these rows.

For T x M chosen rows of width d, nothing of size T M d is allocated on a CPU. Products are a sampled matrix product (SDDMM), sums
are a product of a sparse and a dense matrix, and each is the gradient of the other (benchmarks/sampled_logits.py). On a GPU,
which has enough bandwidth, the rows are gathered.
"""

import warnings
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional as F


def products(rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return rows[t] . table[index[t, m]], (T, M), float32 on a CPU. rows: (T, d); table: (N, d); index: (T, M) int64."""
    if rows.device.type != "cpu":
        return (F.embedding(index, table) @ rows.unsqueeze(2)).squeeze(2)
    return _Products.apply(rows.float(), table.float(), index)


def cosines(rows: Tensor, table: Tensor, index: Tensor, epsilon: float) -> Tensor:
    """Return rows[t] . table[index[t, m]] / max(|table[index[t, m]]|, epsilon): cosines, if `rows` have length 1.

    Shapes as in `products`. The table is not normalised first: its lengths are N numbers, whereas a normalised copy and the
    gradient of that copy have N d numbers each.
    """
    if rows.device.type == "cpu":
        cosine: Tensor = _Cosines.apply(rows.float(), table.float(), index, epsilon)
        return cosine
    return products(rows, table, index) / _lengths(table, epsilon)[index]


def weighted_sums(weights: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return sum_m weights[t, m] table[index[t, m]], (T, d). weights: (T, M); table: (N, d); index: (T, M) int64."""
    if weights.device.type != "cpu":
        return (weights.unsqueeze(1) @ F.embedding(index, table)).squeeze(1)
    return _WeightedSums.apply(weights.float(), table.float(), index)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(rows, table, index)
        return _products(rows, table, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, table, index = ctx.saved_tensors
        return _weighted_sums(gradient, table, index), _scattered(gradient, rows, index, len(table)), None


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, index: Tensor, epsilon: float) -> Tensor:
        lengths = _lengths(table, epsilon)  # (N,)
        of_items = lengths[index]  # (T, M)
        cosine = _products(rows, table, index).div_(of_items)
        ctx.save_for_backward(rows, table, index, lengths, of_items, cosine)
        ctx.epsilon = epsilon
        return cosine

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, table, index, lengths, of_items, cosine = ctx.saved_tensors
        gradient = gradient / of_items
        of_table = _scattered(gradient, rows, index, len(table))
        along = torch.zeros_like(lengths).index_add_(0, index.flatten(), (gradient * cosine).flatten())
        # (N,), the gradient with respect to the length of a row, divided by it: cosines shrink as a row grows.
        shrinking = (along / -lengths).masked_fill_(lengths <= ctx.epsilon, 0)
        return _weighted_sums(gradient, table, index), of_table.addcmul_(table, shrinking.unsqueeze(1)), None, None


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(weights, table, index)
        return _weighted_sums(weights, table, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        weights, table, index = ctx.saved_tensors
        return _products(gradient, table, index), _scattered(weights, gradient, index, len(table)), None


def _lengths(table: Tensor, epsilon: float) -> Tensor:
    """(N, d) -> (N,)"""
    return torch.linalg.vector_norm(table, dim=1).clamp(min=epsilon)


def _products(rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """(T, M)"""
    chosen_rows = index.shape[1]
    starts = torch.arange(0, index.numel() + 1, chosen_rows)
    if len(table) < chosen_rows:  # a sparse matrix is not allowed more entries than it has positions
        table = F.pad(table, (0, 0, 0, chosen_rows - len(table)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Sparse CSR tensor support is in beta state"
        chosen = torch.sparse_csr_tensor(
            starts, index.flatten(), rows.new_zeros(index.numel()), (len(rows), len(table)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(chosen, rows.contiguous(), table.T, beta=0.0).values().view(index.shape)


def _weighted_sums(weights: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """(T, d)"""
    return F.embedding_bag(index, table, per_sample_weights=weights.contiguous(), mode="sum")


def _scattered(weights: Tensor, rows: Tensor, index: Tensor, n: int) -> Tensor:
    """Return (n, d), whose row i is the sum of weights[t, m] rows[t] over all (t, m) with index[t, m] = i."""
    starts = np.arange(0, index.numel() + 1, index.shape[1], dtype=np.int32)
    chosen = (weights.contiguous().view(-1).numpy(), index.int().view(-1).numpy(), starts)
    by_column = csr_array(chosen, shape=(len(rows), n)).tocsc()  # a counting sort
    of_column = torch.from_numpy(by_column.indptr[:-1].copy())
    return F.embedding_bag(
        torch.from_numpy(by_column.indices), rows, of_column, per_sample_weights=torch.from_numpy(by_column.data), mode="sum"
    )
