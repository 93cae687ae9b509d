"""The grid's cells on disk: one directory per (dataset, backbone, adapter), seeds inside."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl

from models.errors import UserError
from pipeline.artifacts import read_json, scratch
from pipeline.metrics import metrics
from pipeline.params import Grid
from pipeline.runs import Run

CELLS = Path("grid/cells")
KEYS = ["dataset", "backbone", "adapter"]


def cell_directory(dataset: str, backbone: str, adapter: str) -> Path:
    return CELLS / f"{dataset}-{backbone}-{adapter}"


def cell_row(run: Run, place: Path, cutoffs: list[int]) -> dict[str, Any]:
    """One seed of a cell: names, test metrics, validation, cost. `place` is the evaluated run's scratch directory."""
    ranks = pl.read_parquet(place / "ranks.parquet")["rank"].to_numpy()
    training = read_json(place / "training.json", "training")
    cost = read_json(place / "run.json", "training")
    analysis = read_json(place / "analysis.json", "evaluation")
    return {
        **{key: getattr(run, key) for key in (*KEYS, "encoder", "dim", "seed")},
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


def listed_cells(grid: Grid) -> list[tuple[str, str, str]]:
    """(dataset, backbone, adapter) of every cell that the grid's lists name, in their order."""
    return [(d, b, a) for d in grid.datasets for b in grid.backbones for a in grid.adapters]


def read_cells(cells: list[tuple[str, str, str]], partial: bool = False) -> pl.DataFrame:
    """One row per (cell, seed). Raises UserError naming the missing cells, unless `partial`; and where there is none at all."""
    files = {cell: cell_directory(*cell) / "metrics.csv" for cell in cells}
    missing = ["-".join(cell) for cell, file in files.items() if not file.is_file()]
    if missing and (not partial or len(missing) == len(cells)):
        raise UserError(
            f"{len(missing)} of {len(cells)} cells are missing ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); "
            "`dvc repro -k grid/dvc.yaml` trains them, `python -m stages.aggregate --partial` tabulates what there is"
        )
    return pl.concat([pl.read_csv(file) for file in files.values() if file.is_file()], how="diagonal_relaxed")


def set_aside_unlisted(cells: list[tuple[str, str, str]]) -> list[str]:
    """Move cells that the grid no longer lists into scratch, so that `grid/cells` is what the lists say; return their names."""
    kept = {cell_directory(*cell).name for cell in cells}
    moved = []
    for directory in sorted(CELLS.glob("*")) if CELLS.is_dir() else []:
        if directory.is_dir() and directory.name not in kept:
            target = scratch() / "unlisted-cells" / directory.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(directory, target)
            moved.append(directory.name)
    return moved
