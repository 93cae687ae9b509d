"""Summarises a tested run as a row of its cell. Importing this module does not import torch."""

from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import read_json
from pipeline.params import Evaluate
from pipeline.runs import Run
from pipeline.training.metrics import headline, metrics_by_ranking
from pipeline.training.sequences import split_of


def run_summary(run: Run, directory: Path, evaluate: Evaluate) -> dict[str, Any]:
    """Return a run's row of a cell: names, test metrics, validation, sizes, seconds, device.

    directory: of the tested run. Metrics of the other rankings have a prefix: `without_history_NDCG@20`, `dot_NDCG@20`.
    Raises UserError if a file is missing.
    """
    by_ranking = metrics_by_ranking(pl.read_parquet(directory / "ranks.parquet"), evaluate.cutoffs, evaluate.exclude_history)
    training = read_json(directory / "training.json", "training")
    cost = read_json(directory / "run.json", "training")
    analysis = read_json(directory / "analysis.json", "evaluation")
    return {
        **{key: getattr(run, key) for key in ("dataset", "backbone", "adapter", "encoder", "dim", "seed")},
        "variant": run.settings["adapter"].get("variant"),
        "loss": run.settings["train"]["loss"],
        **by_ranking.pop(""),
        **analysis["beyond_accuracy"][headline(evaluate.exclude_history)],
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
        "similarity": evaluate.similarity,
        "exclude_history": evaluate.exclude_history,
        "split": split_of(run.sequences),
        **{f"{ranking}_{name}": value for ranking, found in by_ranking.items() for name, value in found.items()},
    }
