"""The sequences artifact as data frames. Importing this module does not import torch."""

from pathlib import Path

import numpy as np
import polars as pl

from common.errors import UserError


def read_sequences(directory: Path) -> tuple[pl.DataFrame, int]:
    """Return the users of a sequences artifact (user_id, items, timestamps) and its number of items N.

    Raises UserError if a file is missing or damaged.
    """
    for name in ("sequences.parquet", "items.parquet"):
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing; `dvc repro data/dvc.yaml:preprocess@{directory.name}` makes it")
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
