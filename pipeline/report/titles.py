"""The names of adapters, backbones, losses, variants and datasets as the report prints them."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.losses import LOSSES

TITLES = {
    **ADAPTERS,
    **BACKBONES,
    **LOSSES,
    "without_attention": "without φ(QKᵀ)",
    "principal_sigma": "D = Σ, not learned",
    "principal_identity": "D = I, not learned",
    "without_encoding": "without D",
}


def title(name: str) -> str:
    """Return the name of an adapter, backbone, loss, variant or dataset as the paper prints it."""
    return TITLES.get(name, name.capitalize())


def pair_title(row: Mapping[str, Any] | pl.DataFrame) -> str:
    """Return "Office, SASRec" for a row with a dataset and a backbone, or for a frame whose rows have the same."""
    found = row.row(0, named=True) if isinstance(row, pl.DataFrame) else row
    return f"{title(found['dataset'])}, {title(found['backbone'])}"


def interval(row: Mapping[str, Any]) -> str:
    """Return "-1.2 to +7.0 %" for a row with `low` and `high`, of which 0.07 means 7 %."""
    return f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f} %"
