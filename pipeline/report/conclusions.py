"""The sentences that the report concludes from the results: which adapter is best, and which runs support no conclusion."""

import math
from pathlib import Path

import polars as pl

from common.words import capitalised, enumeration, plural
from pipeline.artifacts import read_json
from pipeline.grid.cells import KEYS, PAIR
from pipeline.grid.tuning import Tuning
from pipeline.params import Params, Train
from pipeline.report.results import ResultSet
from pipeline.report.significance import SIGNIFICANT
from pipeline.report.titles import interval, pair_title, title

LOSSES = ("info_nce", "cross_entropy")  # against drawn negatives, and against the whole catalogue


def headline_metric(summary: pl.DataFrame) -> str:
    """Return NDCG at the largest cutoff; with the default cutoffs, this is the metric that early stopping monitors."""
    names = [name for name in summary["metric"].unique(maintain_order=True) if name.startswith("NDCG")]
    return max(names, key=lambda name: int(name.partition("@")[2]))


def configuration(loss: str | None) -> str:
    """Return in words how the adapters were configured: tuned under `loss`, or by params.yaml for None."""
    return f"tuned, with the {title(loss)}" if loss else "with the settings of params.yaml"


def is_tie(row: dict) -> bool:
    """Return whether chance, in the users or in training, may explain the leader's difference from another adapter."""
    return row["p_holm"] >= SIGNIFICANT or _within_spread(row)


def _within_spread(row: dict) -> bool:
    """Return whether the difference, in either direction, is at most the larger of both standard deviations over seeds."""
    return abs(row["difference"]) <= max(row["std"] or 0.0, row["std_other"] or 0.0)


def unusable_above(rows: pl.DataFrame, unusable: set[str]) -> list[str]:
    """Return the adapters with unusable runs that are above the leader all the same, each with its mean: "RLMRec (0.4309)".

    rows: from `users.compare`, of one metric, the highest first.
    """
    above = rows.filter(pl.col("other").is_in(list(unusable)) & (pl.col("mean_other") > pl.col("mean")))
    return [f"{title(row['other'])} ({row['mean_other']:.4f})" for row in above.iter_rows(named=True)]


def verdict(summary: pl.DataFrame, compared: pl.DataFrame, unusable: pl.DataFrame) -> str:
    """Return one paragraph that names the best adapter, or the adapters that are level.

    summary: from `results.summarise`; compared: from `users.compare`, of the same cells; unusable: from `results.unusable_runs`.

    An adapter is called best only if the test over users, adjusted for multiple comparisons, separates it from every other
    adapter, and the difference exceeds the standard deviation over seeds. Adapters with unusable runs are left out; if one of
    them is above the leader all the same, there is no conclusion.
    """
    adapters = summary["adapter"].unique(maintain_order=True).to_list()
    if len(adapters) == 1:
        only = f"Only {title(adapters[0])} was run: there is nothing to compare it with."
        return " ".join([only, *_unusable_adapters(unusable)])
    pairs = summary.n_unique(PAIR)
    if not compared.height:
        return f"No conclusion: no two adapters were run on each of the {pairs} pairs of dataset and backbone."
    metric = headline_metric(summary)
    rows = compared.filter(pl.col("metric") == metric).sort("mean_other", descending=True, maintain_order=True)
    leader, excluded = rows["leader"][0], set(unusable["adapter"])
    others = [row for row in rows.iter_rows(named=True) if row["other"] not in excluded]
    absent = [title(name) for name in adapters if name != leader and name not in rows["other"]]
    remarks = _unusable_adapters(unusable)
    remarks += [f"Not run on every pair, so not compared here: {enumeration(absent)}."] if absent else []
    if leader in excluded or not others:
        return " ".join(["No conclusion: fewer than two adapters have only runs that learned and stopped early.", *remarks])
    if ahead := unusable_above(rows, excluded):
        best = f"{title(leader)} ({rows['mean'][0]:.4f}), the best adapter whose runs learned and stopped early"
        return " ".join([f"No conclusion: by {metric}, {enumeration(ahead)} scored above {best}.", *remarks])
    second = others[0]
    ties = [title(row["other"]) for row in others if is_tie(row)]
    below = [title(row["other"]) for row in others if not is_tie(row)]
    over = f", averaged over {pairs} pairs of dataset and backbone" if pairs > 1 else ""
    gain = f"{100 * second['improvement']:.1f} % above" if second["improvement"] is not None else "above"
    shown = f"95 % interval {interval(second)}, " if math.isfinite(second["low"]) else ""
    seeds = f"{second['seeds']} seeds" if second["seeds"] > 1 else "one seed, so chance in training is unknown"
    highest = f"{metric}, {second['mean']:.4f}{over}, {gain} {title(second['other'])}"
    tested = f"({shown}p = {second['p_holm']:.4f} over users, Holm-adjusted; {seeds})"
    if not ties:
        sentences = [f"{title(leader)} is best: it has the highest {highest} {tested}."]
    else:
        sentences = [f"Level: {', '.join([title(leader), *ties])}. {title(leader)} has the highest {highest} {tested}."]
        if _within_spread(second) and second["p_holm"] < SIGNIFICANT:
            spread = max(second["std"] or 0.0, second["std_other"] or 0.0)
            sentences.append(
                f"The difference from {title(second['other'])}, {second['difference']:.4f}, is within the standard deviation "
                f"over seeds, {spread:.4f}."
            )
        sentences += [f"Significantly below {title(leader)}, over users: {enumeration(below)}."] if below else []
    return " ".join([*sentences, *remarks])


def _unusable_adapters(unusable: pl.DataFrame) -> list[str]:
    """Return the sentence that names the adapters that support no conclusion, or an empty list."""
    reasons = {
        "not finished": "runs reached the last epoch and might have improved further",
        "never learned": "runs were best at their first epoch",
    }
    parts = []
    for why, reason in reasons.items():
        names = unusable.filter(pl.col("why") == why)["adapter"].unique(maintain_order=True).to_list()
        parts += [f"{enumeration([title(name) for name in names])} ({reason})"] if names else []
    return [f"No conclusion about {'; '.join(parts)}."] if parts else []


def with_full_softmax(tuned: list[ResultSet]) -> str:
    """Return a sentence on whether text still helps under the full softmax; "" without both losses, Base and another adapter.

    Means are over the pairs of dataset and backbone, and the adapters, that were tuned under both losses. Adapters with runs that
    support no conclusion are left out.
    """
    found = {result_set.loss: result_set.summary for result_set in tuned}
    if not set(LOSSES) <= set(found):
        return ""
    metric = headline_metric(found["info_nce"])
    usable = (set(one.summary["adapter"]) - set(one.unusable["adapter"]) for one in tuned if one.loss in LOSSES)
    shared = set.intersection(*usable)
    means = {
        loss: found[loss]
        .filter((pl.col("metric") == metric) & pl.col("adapter").is_in(shared))
        .pivot(on="adapter", index=PAIR, values="mean")
        for loss in LOSSES
    }
    both = means["info_nce"].join(means["cross_entropy"], on=PAIR, how="inner", suffix="_full").drop_nulls()
    others = sorted(shared - {"base"})
    if "base" not in shared or not others or not both.height:
        return ""

    def mean(name: str, full: bool) -> float:
        return float(both[f"{name}_full" if full else name].to_numpy().mean())

    def highest(full: bool) -> str:
        name = max(others, key=lambda name: mean(name, full))
        return f"{title(name)}, {100 * (mean(name, full) / mean('base', full) - 1):+.1f} %"

    pairs = plural(both.height, "pair")
    return (
        f"Against the whole catalogue instead of drawn negatives, tuned Base goes from an {metric} of {mean('base', False):.4f} "
        f"to {mean('base', True):.4f} (average over {pairs}). The best adapter that uses text, relative to Base: "
        f"{highest(False)} with negatives; {highest(True)} with the whole catalogue."
    )


def budget(params: Params, rows: pl.DataFrame) -> str:
    """Return the sentences on the budget with which the adapters were tuned. rows: the runs of the tuned cells under one loss.

    The budget applies to cells whose runs have the settings of a valid choice in grid/tuned; the other cells are named.
    """
    trials, others = set(), []
    for cell in rows.partition_by(KEYS, maintain_order=True):
        first = cell.row(0, named=True)
        tuning = Tuning(params, *(first[key] for key in (*KEYS, "loss")))
        has_chosen_settings = tuning.has_choice and all(
            read_json(Path(row["run_directory"]) / "config.json", tuning.command).get("settings")
            == tuning.run(tuning.chosen, row["seed"]).settings
            for row in cell.iter_rows(named=True)
        )
        if has_chosen_settings:
            trials.add(tuning.n_trials)
        else:
            others.append(tuning.name)
    sentences = []
    if trials:
        count = (
            f"{min(trials)} to {max(trials)} trials, limited by the number of settings,"
            if len(trials) > 1
            else plural(max(trials), "trial")
        )
        seed = params.grid.tuning.seed
        sentences.append(
            f"Every {'other ' if others else ''}method was tuned separately on validation, with the same budget: {count} (the "
            f"first uses the settings of params.yaml), each a full run with seed {seed}. The best settings and the default, "
            f"three in all at most and none that failed, were also trained with seed {seed + 1}; the best of these under that "
            "seed was chosen. grid/space.yaml lists the values to choose from, grid/tuned/ the chosen ones."
        )
    if others:
        sentences.append(
            "Tuned with another budget, space, setting or data than params.yaml and grid/space.yaml define: "
            f"{', '.join(others)}; `python -m stages.grid` tunes again."
        )
    return " ".join(sentences)


def verdicts(result_set: ResultSet, alone: bool = True) -> list[str | list[str]]:
    """Return the verdict over all pairs of dataset and backbone and, if there are several pairs, a list with one for each.

    alone: whether the report has no other result set; if it has, the verdict starts with how these adapters were configured.
    """
    overall = verdict(result_set.summary, result_set.overall, result_set.unusable)
    if not alone:
        overall = f"{capitalised(configuration(result_set.loss))}: {overall}"
    blocks = result_set.summary.partition_by(PAIR, maintain_order=True)
    lines = []
    for block in blocks if len(blocks) > 1 else []:
        compared, unusable = (
            part.join(block, on=PAIR, how="semi") if part.height else part
            for part in (result_set.comparisons, result_set.unusable)
        )
        lines.append(f"{pair_title(block)}: {verdict(block, compared, unusable)}")
    return [overall, lines] if lines else [overall]


def unusable_sentences(unusable: pl.DataFrame, runs: int, train: Train) -> str:
    """Return sentences that name the runs that support no conclusion, of so many runs, with the reason; "" if there is none."""
    if not unusable.height:
        return ""
    reasons = {
        "never learned": "never improved on the validation of the first epoch; `train.patience` or `train.epochs` may have "
        "stopped them before they learned",
        "not finished": f"reached the last epoch, {train.epochs}, less than {train.patience} epochs after their "
        "best; `train.epochs` may have stopped them before they converged",
    }
    sentences = []
    for why, reason in reasons.items():
        found = unusable.filter(pl.col("why") == why)
        names = [
            f"{run_name(part.row(0, named=True))}, dim {part['dim'][0]} (seed{'s' if part.height > 1 else ''} "
            f"{', '.join(map(str, part['seed']))})"
            for part in found.partition_by(
                "dataset", "backbone", "adapter", "over", "variant", "loss", "dim", maintain_order=True
            )
        ]
        sentences += [f"Of {runs} runs, {found.height} {reason}: {'; '.join(names)}."] if names else []
    return " ".join([*sentences, "Their results may reflect the budget rather than the adapter."])


def run_name(row: dict) -> str:
    """Return the name of a run without dim and seed. row: of the run, as `read_cells` returns it."""
    name = f"{pair_title(row)}, {title(row['adapter'])}"
    if row["over"] == "variants":
        name += f", {title(row['variant'])}"
    if row["over"] == "tuned":
        name += f", {configuration(row['loss'])}"
    return name
