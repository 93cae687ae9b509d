"""Beyond-accuracy metrics of recommendation lists: coverage, novelty and diversity, defined as in RecTools 0.19."""

from pathlib import Path

import numpy as np
import polars as pl
import torch

from models.core.adapter import Spectrum
from pipeline.training.sequences import read_sequences

LISTED = 20  # items of a list
NAMES = tuple(f"{name}@{LISTED}" for name in ("coverage", "novelty", "diversity"))
USERS = 128  # whose items' texts are in memory together


def buyers(sequences: Path) -> tuple[np.ndarray, int]:
    """Return how many users had each item in training, (N,) int64, and how many users had any."""
    users, n_items = read_sequences(sequences)
    pairs = users.select(user=pl.int_range(pl.len()), items=pl.col("items").list.head(pl.col("train")))
    pairs = pairs.explode("items").drop_nulls().unique()
    return np.bincount(pairs["items"].to_numpy(), minlength=n_items), pairs["user"].n_unique()


def beyond_accuracy(lists: np.ndarray, counts: np.ndarray, n_users: int, spectrum: Spectrum) -> dict[str, float]:
    """Return NAMES of lists of items, (U, K), best first, filled up with -1 where there are no more.

    * coverage: the share of the catalogue that is in somebody's list.
    * novelty: the mean over a list of -log2(share of users who had the item in training); an item that nobody had counts as one
      that a single user had. `MeanInvUserFreq` in RecTools.
    * diversity: the mean over the pairs of a list of 1 - cosine of their texts' embeddings; 0 for a list without a pair.
      `IntraListDiversity` in RecTools.

    The last two are means over users. counts, n_users: from `buyers`. The embeddings are U Σ, up to a rotation.
    """
    listed = lists >= 0
    lengths = listed.sum(1)
    novelty = np.where(listed, -np.log2(np.maximum(counts, 1) / n_users)[np.maximum(lists, 0)], 0).sum(1)
    values = (
        len(np.unique(lists[listed])) / len(counts),
        float((novelty[lengths > 0] / lengths[lengths > 0]).mean()) if lengths.any() else 0.0,
        float(np.concatenate([_diversity(lists[i : i + USERS], spectrum) for i in range(0, len(lists), USERS)]).mean()),
    )
    return dict(zip(NAMES, values, strict=True))


def _diversity(lists: np.ndarray, spectrum: Spectrum) -> np.ndarray:
    """The mean of 1 - cosine over the pairs of each list. (U, K) -> (U,)

    The cosines of all ordered pairs, an item with itself included, add up to the squared length of the sum of the unit vectors.
    """
    items = torch.tensor(lists).to(spectrum.U.device)
    vectors = spectrum.U[items.clamp(min=0)] * spectrum.sigma  # (U, K, r)
    unit = torch.nn.functional.normalize(vectors, dim=-1).masked_fill((items < 0).unsqueeze(-1), 0).double()
    of_pairs = (unit.sum(1).square().sum(1) - unit.square().sum((1, 2))).cpu().numpy()
    pairs = (lists >= 0).sum(1).astype(np.float64)
    pairs *= pairs - 1
    return np.where(pairs > 0, 1 - of_pairs / np.maximum(pairs, 1), 0.0)
