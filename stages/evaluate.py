"""Rank every item for every user with the selected run's checkpoint: `python -m stages.evaluate`."""

from pathlib import Path

from pipeline.artifacts import RUNS, atomic_file, write_json
from pipeline.grid.execution import verify_inputs
from pipeline.params import load_params
from pipeline.runs import CHECKPOINT, Run
from pipeline.training.metrics import metrics
from stages import run

COMPARED = ("effective_rank", "top10_share")


def main() -> str:
    params = load_params()
    selected = Run.of(params)
    verify_inputs(selected)

    from pipeline.evaluation.evaluate import evaluate_checkpoint

    evaluation = evaluate_checkpoint(CHECKPOINT, selected)
    ranks = evaluation.ranks
    figures = metrics(ranks["rank"].to_numpy(), params.evaluate.cutoffs)
    with atomic_file(Path("data/ranks/selected.parquet")) as partial:
        ranks.write_parquet(partial)
    write_json(RUNS / "evaluate-selected.json", {"seconds": evaluation.seconds})
    write_json(Path("data/analysis/selected.json"), evaluation.analysis)
    write_json(Path("metrics/evaluation.json"), figures)
    write_json(Path("metrics/analysis.json"), {name: evaluation.analysis[name] for name in COMPARED})
    with atomic_file(Path("metrics/spectrum.csv")) as partial:
        evaluation.spectrum.write_csv(partial)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return f"{selected.name}: {ranks.height:,} users, {shown}"


if __name__ == "__main__":
    run(main)
