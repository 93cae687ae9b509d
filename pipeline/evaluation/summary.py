"""The row of a trained and tested run in its cell. Importing this module does not import torch."""

from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import read_json
from pipeline.runs import Run
from pipeline.training.metrics import metrics


def run_summary(run: Run, directory: Path, cutoffs: list[int]) -> dict[str, Any]:
    """Return a run's row of a cell: names, test metrics, validation, sizes, seconds, device.

    directory: of the tested run. cutoffs: K of HR@K and NDCG@K. Raises UserError if a file is missing.
    """
    ranks = pl.read_parquet(directory / "ranks.parquet")["rank"].to_numpy()
    training = read_json(directory / "training.json", "training")
    cost = read_json(directory / "run.json", "training")
    analysis = read_json(directory / "analysis.json", "evaluation")
    return {
        **{key: getattr(run, key) for key in ("dataset", "backbone", "adapter", "encoder", "dim", "seed")},
        "variant": run.settings["adapter"].get("variant"),
        "loss": run.settings["train"]["loss"],
        **metrics(ranks, cutoffs),
        "validation_NDCG@20": training["validation"]["NDCG@20"],
        "epochs": training["epochs"],
        "best_epoch": training["best_epoch"],
        "trainable_parameters": training["trainable_parameters"],
        "effective_rank": analysis["effective_rank"],
        "top10_share": analysis["top10_share"],
        "training_seconds": cost["seconds"],
        "seconds_per_epoch": cost["seconds_per_epoch"],
        "inference_seconds": analysis["inference_seconds"],
        "device": cost["device"],
        "threads": cost["threads"],
    }
