"""The sequences artifact as data frames. Importing this module does not import torch."""

from pathlib import Path

import numpy as np
import polars as pl

from common.errors import UserError
from pipeline.artifacts import verify
from pipeline.runs import preprocess_command


def read_sequences(directory: Path) -> tuple[pl.DataFrame, int]:
    """Return the users of a sequences artifact (columns `user_id` and `items`) and its number of items.

    Raises UserError if the artifact is missing or damaged.
    """
    verify(directory, preprocess_command(directory.name), ["sequences.parquet", "items.parquet"])
    try:
        users = pl.read_parquet(directory / "sequences.parquet")
        n_items = pl.scan_parquet(directory / "items.parquet").select(pl.len()).collect().item()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{directory} is damaged ({str(error).splitlines()[0]}); delete it and run `dvc repro` again") from None
    return users, n_items


def popularity(users: pl.DataFrame, n_items: int) -> np.ndarray:
    """Return the number of training interactions of every item, without validation and test targets. (N,) int64"""
    items = users.select(pl.col("items").list.head(pl.col("items").list.len() - 2)).to_series().explode().to_numpy()
    return np.bincount(items, minlength=n_items)
