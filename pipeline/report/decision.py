"""metrics/decision.md: on one page which adapter to ship, how sure that is, what it costs, and what would change the verdict."""

import json
import math
from pathlib import Path

import polars as pl

from common.words import enumeration, plural
from pipeline.artifacts import atomic_file, read_json
from pipeline.grid.cells import PAIR, Cell
from pipeline.grid.tuning import MONITOR
from pipeline.params import Params
from pipeline.report.candidate import Candidate
from pipeline.report.changes import what_would_change
from pipeline.report.conclusions import configuration, is_tie, unusable_above
from pipeline.report.formats import markdown_lines, markdown_text
from pipeline.report.measured import Measured
from pipeline.report.titles import interval, pair_title, title
from pipeline.report.trivial import Beaten, against_trivial
from pipeline.runs import Run, sequences_directory
from pipeline.training.metrics import headline
from pipeline.training.sequences import popularity, read_sequences, split_of

DECISION = Path("metrics/decision.md")
MIB = 2**20
PUT_BACK = "The first command leaves its settings in params.yaml. Before the next grid, put the old ones back:"


def write_decision(params: Params, measured: Measured, missing: list[Cell]) -> list[str]:
    """Write metrics/decision.md; return the sentences that say what would change the verdict.

    missing: listed cells that are not in the report.
    """
    parts, changes = ["# Which adapter to ship"], []
    trivial = measured.trivial
    several = measured.default.n_unique(PAIR) > 1 or len(measured.result_sets) > 1
    if len(measured.result_sets) > 1:
        parts.append(
            "A pair of dataset and backbone whose adapters were tuned has several sections. Tuning chose by validation between "
            "the settings of params.yaml and others, for each adapter, so follow a section of tuned adapters there. If there are "
            f"several losses, take the one whose leader has the highest validation {MONITOR}: the test items are for measuring, "
            "not for choosing settings."
        )
    for result_set in measured.result_sets:
        for block in measured.rows_of(result_set).partition_by(PAIR, maintain_order=True):
            here = (pl.col("dataset") == block["dataset"][0]) & (pl.col("backbone") == block["backbone"][0])
            compared, unfit, baselines = (
                frame.filter(condition) if frame.height else frame
                for frame, condition in (
                    (result_set.comparisons, here),
                    (result_set.unusable, here),
                    (trivial, pl.col("dataset") == block["dataset"][0]),
                )
            )
            name = pair_title(block) + (f", {configuration(result_set.loss)}" if len(measured.result_sets) > 1 else "")
            said, change = _block(params, name, block, compared, unfit, baselines)
            parts += said
            changes += [f"{name}: {sentence}" if several else sentence for sentence in change]
    if names := ", ".join(cell.name for cell in missing if cell.over in ("seeds", "tuned")):
        parts.append(f"Not in this report: {names}. This page says nothing of them; `python -m stages.grid` trains them.")
    parts.append(
        "Means over users and seeds on the test items, which were ranked once; tests and intervals are over users. "
        "[report.md](report.md) has all tables."
    )
    with atomic_file(DECISION) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return changes


def _block(
    params: Params, name: str, runs: pl.DataFrame, compared: pl.DataFrame, unusable: pl.DataFrame, trivial: pl.DataFrame
) -> tuple[list[str], list[str]]:
    """Return the parts of one section of the page, and the sentences that say what would change its verdict.

    name: of the section. runs: a row per run of one dataset and backbone, all with default settings or all tuned under one loss.
    """
    cutoff = max(params.evaluate.cutoffs)
    metric, column = f"NDCG@{cutoff}", headline(params.evaluate.exclude_history)
    candidates = {part["adapter"][0]: Candidate(part) for part in runs.partition_by("adapter", maintain_order=True)}
    rows = compared
    if compared.height:
        rows = compared.filter(pl.col("metric") == metric).sort("mean_other", descending=True, maintain_order=True)
        rows = rows.with_columns(holm_factor=pl.len() + 1 - pl.col("p").rank("min"))
    unfit = set(unusable["adapter"]) if unusable.height else set()
    leader = candidates[rows["leader"][0] if rows.height else max(candidates, key=lambda name: candidates[name].mean(metric))]
    others = [row for row in rows.iter_rows(named=True) if row["other"] not in unfit]
    level = [row for row in others if is_tie(row)]
    gains = leader.gains(column, cutoff)
    beaten = against_trivial(gains, trivial, metric, column, cutoff)
    users = gains.height
    lines = [["", title(leader.adapter)]]
    chosen_by = [f"validation_{MONITOR}"] if params.grid.tuning.datasets else []
    for measure in (metric, f"HR@{cutoff}", *chosen_by):
        spread = leader.std(measure)
        shown = f"{leader.mean(measure):.4f}" + (f" ± {spread:.4f}" if spread is not None else "")
        lines.append([measure.replace("_", " "), shown])
    lines.append(["split", split_of(sequences_directory(runs["dataset"][0]))])
    lines += [["level with", _level_named(level, others)], ["best without training", _trivial_named(beaten)]]
    lines.append(["items without a training click", cold_start(leader.gains(column, cutoff), runs["dataset"][0], metric)])
    lines.append(["ranking, a user", f"{1e3 * leader.mean('inference_seconds') / users:.3g} ms"])
    size = leader.mean("trainable_parameters")
    lines.append(["size", f"{size:,.0f} trained parameters, {4 * size / MIB:.1f} MiB"])
    devices = enumeration(leader.runs["device"].unique().sort().to_list())
    lines.append(["training, a run", f"{leader.mean('training_seconds') / 60:.1f} minutes ({devices})"])
    names, settings, back = selecting(params, leader)
    heading = f"## {name}: {plural(users, 'user')}, {plural(leader.runs.height, 'seed')}"
    changes = what_would_change(params, leader, candidates, others, level, unusable, beaten, users)
    parts = [
        markdown_text(heading),
        f"**{verdict(leader, candidates, level, beaten, unfit, unusable_above(rows, unfit) if rows.height else [])}**",
        markdown_lines([[markdown_text(entry) for entry in line] for line in lines]),
        f"To serve {title(leader.adapter)}{'' if beaten is None or beaten.surely else ' all the same'}: "
        f"`dvc exp run evaluate {' '.join(names + settings)}`, then `dvc repro serving/dvc.yaml`."
        + (f" {PUT_BACK} `dvc exp run check {' '.join(back)}`." if back else ""),
        "What would change the verdict:\n\n" + "\n".join(f"- {markdown_text(change)}" for change in changes),
    ]
    return parts, changes


def selecting(params: Params, leader: Candidate) -> tuple[list[str], list[str], list[str]]:
    """Return options of `dvc exp run`: those that select an adapter, settings that differ from params.yaml, and the way back."""
    row = leader.runs.row(0, named=True)
    names = {name: row[name] for name in ("dataset", "backbone", "adapter", "dim")}
    found: list[str] = []
    back: list[str] = []
    sections = {"backbone": f"backbones.{row['backbone']}", "adapter": f"adapters.{row['adapter']}"}
    default = Run.of(params, **names, seed=row["seed"]).settings
    trained = read_json(Path(row["run_directory"]) / "config.json", "`dvc repro grid/dvc.yaml`")["settings"]
    for section in ("train", "backbone", "adapter"):
        for option, value in trained[section].items():
            if option in default[section] and value != default[section][option]:  # else there is no such option any more
                for options, chosen in ((found, value), (back, default[section][option])):
                    shown = chosen if isinstance(chosen, str) else json.dumps(chosen)
                    options.append(f"-S {sections.get(section, section)}.{option}={shown}")
    return [f"-S {name}={value}" for name, value in names.items()], found, back


def verdict(
    leader: Candidate,
    candidates: dict[str, Candidate],
    level: list[dict],
    beaten: Beaten | None,
    unfit: set[str],
    ahead: list[str],
) -> str:
    """The one sentence to act on. ahead: adapters of `unfit` that are above the leader, with their means."""
    name = title(leader.adapter)
    if leader.adapter in unfit:
        return (
            "No verdict yet: every adapter has a run that was ended by `train.epochs`, or never learned; raise it, or "
            "`train.patience`."
        )
    if ahead:
        return (
            f"No verdict yet: {enumeration(ahead)} scored above {name}, but with runs that were ended by `train.epochs`, or "
            "never learned; raise it, or `train.patience`."
        )
    if beaten and not beaten.surely:
        how = "is not beyond chance above" if beaten.improvement > 0 else "does not beat"
        return f"Ship none yet: {name}, the best adapter, {how} {beaten.name}, which needs no training."
    if len(candidates) == 1:
        return f"{name} is the only adapter that was run: there is nothing to compare it with."
    if not set(candidates) - unfit - {leader.adapter}:
        return (
            f"No verdict yet: every adapter except {name} has a run that was ended by `train.epochs`, or never learned; raise "
            "it, or `train.patience`."
        )
    if not level:
        which = " with runs that support a conclusion" if unfit else ""
        if leader.runs.height == 1:
            chance = "beyond chance in the users; with one seed, chance in training is not known"
            return f"Ship {name}: it is above every other adapter{which}, {chance}."
        return f"Ship {name}: it is beyond chance above every other adapter{which}."
    equals = [leader, *(candidates[row["other"]] for row in level)]
    cheapest = min(equals, key=lambda one: one.mean("training_seconds"))
    smallest = min(equals, key=lambda one: one.mean("trainable_parameters"))
    if cheapest is smallest:
        which = f"{title(cheapest.adapter)} is the fastest of them to train, and the smallest."
    else:
        which = f"{title(cheapest.adapter)} is the fastest of them to train, {title(smallest.adapter)} the smallest."
    return f"Ship {name}, or any of those level with it: {', '.join(title(row['other']) for row in level)}. {which}"


def _level_named(level: list[dict], others: list[dict]) -> str:
    if not others:
        return "–"
    second = others[0]
    if not level:
        return f"none; the runner-up is {title(second['other'])}, {_figures(second)}"
    return "; ".join(f"{title(row['other'])}, {_figures(row)}" for row in level)


def _figures(row: dict) -> str:
    gain = f"{100 * row['improvement']:+.1f} %" if row["improvement"] is not None else "above 0"
    shown = f" ({interval(row)})" if math.isfinite(row["low"]) else ""
    return f"{gain}{shown}, p = {row['p_holm']:.4f}"


def _trivial_named(beaten: Beaten | None) -> str:
    if beaten is None:
        return "not measured; `dvc repro grid/dvc.yaml` ranks the trivial baselines"
    row = {"improvement": beaten.improvement, "low": beaten.low, "high": beaten.high, "p_holm": beaten.p}
    return f"{'beats' if beaten.surely else 'DOES NOT BEAT'} {beaten.name}, {beaten.mean:.4f}: {_figures(row)}"


def cold_start(gains: pl.DataFrame, dataset: str, metric: str) -> str:
    """Quality where the test item was in nobody's training items."""
    users, n_items = read_sequences(sequences_directory(dataset))
    counts = popularity(users, n_items)
    tested = users.filter(pl.col("test").is_not_null())
    targets = tested.select(pl.col("items").list.get(pl.col("test"))).to_series().to_numpy()
    cold = tested.filter(pl.Series(counts[targets] == 0)).select("user_id")
    if not cold.height:
        return "none among the test items"
    theirs = gains.join(cold, on="user_id", how="semi")["gain"].to_numpy()
    return f"{metric} {theirs.mean():.4f} ({plural(cold.height, 'user')})"
