"""The sequences artifact as data frames. Importing this module does not import torch."""

from pathlib import Path

import numpy as np
import polars as pl

from common.errors import UserError
from pipeline.artifacts import SIDECAR, read_signed, verify
from pipeline.runs import preprocess_command

LEAVE_ONE_OUT = "leave-one-out"


def read_sequences(directory: Path) -> tuple[pl.DataFrame, int]:
    """Return the users of a sequences artifact and its number of items.

    Columns: `user_id`; `items`, oldest first; and the split: `train`, how many of the items are for training, and `valid` and
    `test`, the positions of the targets, null for a user without one. The history of a target is everything before it. Unless
    preprocessing split by time, this is leave-one-out: the last item is for the test, the one before it for validation.

    Raises UserError if the artifact is missing or damaged.
    """
    verify(directory, preprocess_command(directory.name), ["sequences.parquet", "items.parquet"])
    try:
        users = pl.read_parquet(directory / "sequences.parquet")
        n_items = pl.scan_parquet(directory / "items.parquet").select(pl.len()).collect().item()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{directory} is damaged ({str(error).splitlines()[0]}); delete it and run `dvc repro` again") from None
    if "test" not in users.columns:
        length = pl.col("items").list.len().cast(pl.Int64)
        users = users.with_columns(train=length - 2, valid=length - 2, test=length - 1)
    return users, n_items


def split_of(directory: Path) -> str:
    """Return the split of a sequences artifact in words. Raises UserError if the artifact is missing."""
    options = read_signed(directory / SIDECAR, preprocess_command(directory.name)).get("preprocess", {})
    if options.get("split") != "global":
        return LEAVE_ONE_OUT
    return f"by time: validation from {options['valid_from']}, test from {options['test_from']}"


def popularity(users: pl.DataFrame, n_items: int) -> np.ndarray:
    """Return the number of training interactions of every item. users: from `read_sequences`. Returns (N,) int64."""
    items = users.select(pl.col("items").list.head(pl.col("train"))).to_series().explode().drop_nulls().to_numpy()
    return np.bincount(items, minlength=n_items)
