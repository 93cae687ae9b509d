"""The figures of items held out of training, which `python -m stages.cold` measures: an artifact per dataset."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import SIDECAR, atomic_directory, read_signed, verify
from pipeline.params import Params
from pipeline.runs import preprocess_command, sequences_directory, spectrum_directory, svd_command

FOLDER = Path("metrics/cold")
TABLE = "cold.csv"


def settings(params: Params, encoder: str, backbone: str, dim: int) -> dict[str, Any]:
    """Return what the figures of a dataset depend on beside its sequences and spectrum; JSON."""
    chosen = {"encoder": encoder, "backbone": backbone, "dim": dim, "train": params.train.model_dump()}
    chosen |= {"options": {"backbone": params.backbones[backbone], "adapters": params.adapters}}
    found: dict[str, Any] = json.loads(json.dumps(chosen | {"similarity": params.evaluate.similarity}))
    return found


def write_figures(params: Params, drawn: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write metrics/cold/<dataset> for the selected dataset; return the path of its table. drawn: how items were held out."""
    dataset, encoder = params.dataset, params.encoder
    made_from = {
        "dataset": dataset,
        "held_out": drawn,
        "seed": params.seed,
        "settings": settings(params, encoder, params.backbone, params.dim),
        "sequences": read_signed(sequences_directory(dataset) / SIDECAR, preprocess_command(dataset))["checksum"],
        "spectrum": read_signed(spectrum_directory(dataset, encoder) / SIDECAR, svd_command(dataset))["checksum"],
    }
    with atomic_directory(FOLDER / dataset, made_from) as directory:
        pl.DataFrame(rows).write_csv(directory / TABLE, float_precision=6)
    return FOLDER / dataset / TABLE


def read_figures(params: Params, dataset: str, encoder: str, backbone: str, dim: int) -> tuple[pl.DataFrame | None, str]:
    """Return the rows of metrics/cold/<dataset> and "", or None and why there are none; both are empty if nothing was measured.

    Raises UserError for a damaged artifact.
    """
    directory = FOLDER / dataset
    if not directory.is_dir():
        return None, ""
    again = "`python -m stages.cold`"
    made = verify(directory, again)
    current = {
        "settings": settings(params, encoder, backbone, dim),
        "sequences": read_signed(sequences_directory(dataset) / SIDECAR, preprocess_command(dataset))["checksum"],
        "spectrum": read_signed(spectrum_directory(dataset, encoder) / SIDECAR, svd_command(dataset))["checksum"],
    }
    differs = [name for name, value in current.items() if made.get(name) != value]
    if differs:
        return None, f"{directory} was measured with other {' and '.join(differs)} and is left out; {again} measures it again"
    return pl.read_csv(directory / TABLE).with_columns(pl.col("ids").fill_null("")), ""
