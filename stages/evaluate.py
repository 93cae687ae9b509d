"""Rank every item for every user with the selected run's checkpoint: `python -m stages.evaluate`."""

from pathlib import Path

from common.arguments import Arguments
from common.words import plural
from pipeline.artifacts import atomic_file, read_json, sha256, write_json, write_signed
from pipeline.params import load_params
from pipeline.runs import CHECKPOINT, EVALUATED, EVALUATION, SELECTED_RANKS, Run, evaluation_code, watched
from pipeline.training.metrics import headline, metrics_by_ranking
from stages import run

ANALYSIS_METRICS = ("effective_rank", "top10_share")  # columns of `dvc exp show`


def main() -> str:
    Arguments(description=__doc__).parse_args()
    params = load_params()
    selected = Run.of(params)
    check_unchanged = watched(params, lambda today: [Run.of(today).fingerprint, evaluation_code(), today.evaluate])
    selected.verify_inputs()  # before torch is imported

    from pipeline.evaluation.evaluate import evaluate_checkpoint

    evaluation = evaluate_checkpoint(CHECKPOINT, selected)
    check_unchanged()
    ranks = evaluation.ranks
    by_ranking = metrics_by_ranking(ranks, params.evaluate.cutoffs, params.evaluate.exclude_history)
    metrics = by_ranking.pop("")
    # Each metric is a column of `dvc exp show`, so the other rankings have only NDCG and HR at the largest cutoff.
    shown_of_others = [f"{name}@{max(params.evaluate.cutoffs)}" for name in ("NDCG", "HR")]
    others = {ranking: {name: values[name] for name in shown_of_others} for ranking, values in by_ranking.items()}
    with atomic_file(SELECTED_RANKS) as partial:
        ranks.write_parquet(partial)
    write_json(Path("data/analysis/selected.json"), evaluation.analysis)
    write_json(EVALUATION, metrics | {"others": others})
    # The fingerprint is that of the weights: a checkpoint from other data of the same name can be tested too.
    trained = read_json(CHECKPOINT / "config.json", "`dvc repro train`")["fingerprint"]
    record = {"seconds": evaluation.seconds, "run": selected.choice, "fingerprint": trained}
    write_signed(EVALUATED, record | {file.name: sha256(file) for file in (EVALUATION, SELECTED_RANKS)})
    beyond = evaluation.analysis["beyond_accuracy"][headline(params.evaluate.exclude_history)]
    write_json(Path("metrics/analysis.json"), {name: evaluation.analysis[name] for name in ANALYSIS_METRICS} | beyond)
    with atomic_file(Path("metrics/spectrum.csv")) as partial:
        evaluation.spectrum.write_csv(partial)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return f"{selected.name}: {plural(ranks.height, 'user')}, {shown}"


if __name__ == "__main__":
    run(main)
