"""The figures of items held out of training, which `python -m stages.cold` measures: an artifact per dataset."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from common.code import code_fingerprint
from pipeline.artifacts import SIDECAR, atomic_directory, read_signed, verify
from pipeline.grid.tables import read_csv_table
from pipeline.params import Params
from pipeline.runs import ROOT, Run, preprocess_command, sequences_directory

FOLDER = Path("metrics/cold")
TABLE = "cold.csv"
COLD_CODE = (  # beside that of the runs
    "pipeline/embedding/spectrum.py",
    "pipeline/serving/cold.py",
    "pipeline/serving/encoder.py",
    "pipeline/serving/new_items.py",
    "pipeline/serving/recommender.py",
)


def made_from(params: Params, dataset: str, encoder: str, backbone: str, dim: int, methods: Iterable[str]) -> dict[str, Any]:
    """Return what a dataset's figures of these methods depend on; JSON.

    It is the same on every machine, so it excludes the spectrum's bytes.
    """
    choice = {"dataset": dataset, "encoder": encoder, "backbone": backbone, "dim": dim}
    runs = [Run.of(params, **choice, adapter=adapter) for adapter in sorted({*methods} & {*params.adapters})]
    settings = choice | {
        "embedded_by": params.encoders[encoder].model_dump(),
        "svd": params.svd.model_dump(),
        "runs": {run.adapter: run.settings for run in runs},
    }
    return {
        "settings": json.loads(json.dumps(settings)),
        "sequences": read_signed(sequences_directory(dataset) / SIDECAR, preprocess_command(dataset))["checksum"],
        "code": code_fingerprint(ROOT, sorted({*COLD_CODE, *(file for run in runs for file in run.code)})),
    }


def write_figures(params: Params, drawn: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write metrics/cold/<dataset> for the selected dataset; return the path of its table. drawn: how items were held out."""
    dataset = params.dataset
    methods = [row["method"] for row in rows]
    depends = made_from(params, dataset, params.encoder, params.backbone, params.dim, methods)
    with atomic_directory(FOLDER / dataset, {"held_out": drawn, "seed": params.seed, **depends}) as directory:
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
    choice = f"`dataset: {dataset}`, `encoder: {encoder}`, `backbone: {backbone}` and `dim: {dim}`"
    current = made_from(params, dataset, encoder, backbone, dim, made["settings"]["runs"])
    if differs := [name for name, value in current.items() if made.get(name) != value]:
        return None, (
            f"{directory} was measured with other {' and '.join(differs)} and is left out; with {choice} in params.yaml, {again} "
            "measures it again"
        )
    return read_csv_table(directory / TABLE).with_columns(pl.col("ids").fill_null("")), ""
