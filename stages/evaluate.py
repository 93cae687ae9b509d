"""Rank every item for every user with the selected run's checkpoint: `python -m stages.evaluate`."""

from pathlib import Path

from pipeline.artifacts import RUNS, atomic_file, write_json
from pipeline.metrics import metrics
from pipeline.params import load_params
from pipeline.runs import CHECKPOINT, Run
from stages import run


def main() -> str:
    params = load_params()
    selected = Run.of(params)

    from pipeline.evaluation import evaluate_checkpoint

    ranks, seconds = evaluate_checkpoint(CHECKPOINT, selected)
    figures = metrics(ranks["rank"].to_numpy(), params.evaluate.cutoffs)
    with atomic_file(Path("data/ranks/selected.parquet")) as partial:
        ranks.write_parquet(partial)
    write_json(RUNS / "evaluate-selected.json", {"seconds": seconds})
    write_json(Path("metrics/evaluation.json"), figures)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return f"{selected.name}: {ranks.height:,} users, {shown}"


if __name__ == "__main__":
    run(main)
