"""Train the selected run, or copy it from scratch if it was trained before: `python -m stages.train`."""

import shutil
from pathlib import Path

from common.arguments import Arguments
from pipeline.artifacts import RUNS, atomic_directory, atomic_file, read_json, write_json
from pipeline.grid.execution import trained
from pipeline.params import load_params
from pipeline.runs import CHECKPOINT, Run, watched
from stages import run


def main() -> str:
    Arguments(description=__doc__).parse_args()
    params = load_params()
    selected = Run.of(params)
    check_unchanged = watched(params, lambda today: Run.of(today).fingerprint)
    source = trained(selected)
    check_unchanged()
    with atomic_directory(CHECKPOINT, {"run": selected.fingerprint}) as directory:
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(source / name, directory / name)
    for name, target in (("history.csv", Path("metrics/history.csv")), ("run.json", RUNS / "train-selected.json")):
        with atomic_file(target) as partial:
            shutil.copyfile(source / name, partial)
    summary = read_json(source / "training.json", "training")
    # Each value is a column of `dvc exp show`. All validation metrics are in history.csv.
    columns = {
        "validation": {name: summary["validation"][name] for name in ("NDCG@20", "HR@20")},
        "best_epoch": summary["best_epoch"],
        "trainable_parameters": summary["trainable_parameters"],
    }
    write_json(Path("metrics/training.json"), columns)
    return (
        f"{selected.name}: validation NDCG@20 {summary['validation']['NDCG@20']:.4f} "
        f"at epoch {summary['best_epoch']} of {summary['epochs']}"
    )


if __name__ == "__main__":
    run(main)
