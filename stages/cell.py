"""Train and evaluate one cell of the grid over its seeds: `python -m stages.cell office sasrec spectran`."""

import os
import shutil
from argparse import ArgumentParser

import polars as pl

from models.errors import UserError
from models.registry import check_name
from pipeline.artifacts import atomic_directory
from pipeline.cells import cell_directory, cell_row
from pipeline.execution import evaluated, evaluated_together, tested
from pipeline.grid import NO_TRAINING
from pipeline.metrics import metric_names
from pipeline.params import load_params
from pipeline.runs import Run
from stages import run

KEPT = ("model.safetensors", "config.json", "history.csv", "analysis.json", "spectrum.csv")


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    for name in ("dataset", "backbone", "adapter"):
        parser.add_argument(name)
    parser.add_argument("--prepare", type=int, metavar="SEED", help="train and test this seed into scratch, and no more")
    chosen = vars(parser.parse_args())
    seed = chosen.pop("prepare")
    params = load_params()
    check_name("dataset", chosen["dataset"], params.sources)
    check_name("backbone", chosen["backbone"], params.backbones)
    check_name("adapter", chosen["adapter"], params.adapters)
    if seed is not None:
        return f"{evaluated(Run.of(params, **chosen, dim=params.grid.dim, seed=seed))}"
    runs = [Run.of(params, **chosen, dim=params.grid.dim, seed=seed) for seed in params.grid.seeds]
    missing = [run for run in runs if not (run.finished and tested(run.scratch))]
    if missing and os.environ.get(NO_TRAINING):
        raise UserError(f"{NO_TRAINING} is set and {len(missing)} of {len(runs)} runs are not trained")
    places = list(zip(runs, evaluated_together(runs), strict=True))
    rows = [cell_row(seeded, place, params.evaluate.cutoffs) for seeded, place in places]
    with atomic_directory(cell_directory(**chosen)) as directory:
        for seeded, place in places:
            (directory / f"seed-{seeded.seed}").mkdir()
            for name in KEPT:
                shutil.copyfile(place / name, directory / f"seed-{seeded.seed}" / name)
        pl.concat(
            pl.read_parquet(place / "ranks.parquet").select(pl.lit(seeded.seed).alias("seed"), "user_id", "rank")
            for seeded, place in places
        ).write_parquet(directory / "ranks.parquet")
        pl.DataFrame(rows).write_csv(directory / "metrics.csv")
    names = metric_names(params.evaluate.cutoffs)
    shown = ", ".join(f"{name} {sum(row[name] for row in rows) / len(rows):.4f}" for name in names)
    return f"{'-'.join(chosen.values())}: mean of {len(rows)} seeds: {shown}"


if __name__ == "__main__":
    run(main)
