"""metrics/decision.md: on one page which adapter to ship, how sure that is, what it costs, and what would change the verdict."""

import json
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import numpy as np
import polars as pl

from common.words import enumeration, plural
from pipeline.artifacts import atomic_file, read_json
from pipeline.data.repeats import repeated
from pipeline.grid.cells import PAIR, Cell
from pipeline.grid.published import PUBLISHED, RUNS, read_runs
from pipeline.grid.tuning import MONITOR
from pipeline.params import Params
from pipeline.report.conclusions import configuration, is_tie, unusable_above
from pipeline.report.formats import markdown_lines, markdown_text
from pipeline.report.measured import Measured
from pipeline.report.significance import SIGNIFICANT
from pipeline.report.titles import interval, pair_title, title
from pipeline.report.trivial import Beaten, against_trivial
from pipeline.report.users import rank_metrics
from pipeline.runs import Run, sequences_directory
from pipeline.training.metrics import ALL_ITEMS, NEW_ITEMS, headline
from pipeline.training.sequences import LEAVE_ONE_OUT, popularity, read_sequences, split_of

DECISION = Path("metrics/decision.md")
MIB = 2**20
MOST = 100  # times the users of the data: nobody has more, so an exact number beyond says nothing


@dataclass(frozen=True)
class Candidate:
    """One adapter on one dataset and backbone: a row per seed."""

    runs: pl.DataFrame

    @property
    def adapter(self) -> str:
        return str(self.runs["adapter"][0])

    def mean(self, name: str) -> float:
        return float(self.runs[name].to_numpy().mean())

    def std(self, name: str) -> float | None:
        return float(np.std(self.runs[name].to_numpy(), ddof=1)) if self.runs.height > 1 else None

    @property
    def ranks(self) -> Path:
        return Path(self.runs["run_directory"][0]).parent / "ranks.parquet"

    def has(self, column: str) -> bool:
        """Whether the cell has the ranks of a protocol."""
        return column in pl.scan_parquet(self.ranks, glob=False).collect_schema()

    def gains(self, column: str, cutoff: int) -> pl.DataFrame:
        """user_id and NDCG of every user, mean over seeds, sorted by user."""
        ranks = pl.read_parquet(self.ranks, columns=["user_id", column], glob=False)
        return ranks.group_by("user_id").agg(rank_metrics(column, cutoff)[0].mean().alias("gain")).sort("user_id")


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
        + (f" Before the next grid, for which they would be defaults: `dvc exp run check {' '.join(back)}`." if back else ""),
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


def what_would_change(
    params: Params,
    leader: Candidate,
    candidates: dict[str, Candidate],
    others: list[dict],
    level: list[dict],
    unusable: pl.DataFrame,
    beaten: Beaten | None,
    users: int,
) -> list[str]:
    """Sentences: more users or seeds, more epochs, another protocol."""
    name, cutoff = title(leader.adapter), max(params.evaluate.cutoffs)
    found = [sentence for row in level[:1] for sentence in more_users(name, row, users)]
    if others and not level and math.isfinite(others[0]["low"]):
        gain = f"at least {100 * others[0]['low']:.1f} %, the lower end of the interval"
        found.append(f"{title(others[0]['other'])}, the runner-up, would have to gain {gain}, to be level with {name}.")
    if leader.runs.height == 1:
        command = "`dvc exp run check -S 'grid.seeds=[0,1,2]'`, then `python -m stages.grid`, trains two more"
        found.append(f"More seeds: with one, chance in training is not known; {command}.")
    if unusable.height:
        names = ", ".join(title(adapter) for adapter in unusable["adapter"].unique(maintain_order=True))
        found.append(f"More epochs: runs of {names} ended at `train.epochs`, or never learned, and take no part.")
    if not params.grid.tuning.datasets:
        found.append(
            "Tuning: the adapters have the settings of params.yaml; `grid.tuning` tries the same number of others for each."
        )
    unfit = set(unusable["adapter"]) if unusable.height else set()
    usable = {adapter: one for adapter, one in candidates.items() if adapter not in unfit or one is leader}
    again = repeated(read_sequences(sequences_directory(leader.runs["dataset"][0]))[0])
    found += other_protocol(leader, usable, again, params.evaluate.exclude_history, cutoff)
    found += other_split(leader, usable, cutoff)
    if beaten and beaten.surely:
        gain = f"at least {100 * beaten.low:.1f} %, the lower end of the interval"
        found.append(f"{beaten.name} would have to gain {gain}, to be level with {name}.")
    return found


def more_users(leader: str, row: dict, users: int) -> list[str]:
    """How many users would tell the leader from an adapter that is level with it; nothing where the comparison does not say.

    row: the comparison, from `users.comparisons`, with the factor by which Holm's method multiplies its p. The width of the
    interval falls with the square root of the number of users.
    """
    gain, width = row["improvement"], row["high"] - row["low"]
    if not gain or gain < 0 or not math.isfinite(width) or row["p_holm"] < SIGNIFICANT:
        return []
    # The interval is that of one comparison, at 5 %; Holm's factor makes it one of several, with a smaller share for each.
    wider = NormalDist().inv_cdf(SIGNIFICANT / row["holm_factor"] / 2) / NormalDist().inv_cdf(SIGNIFICANT / 2)
    needed = users * (width / 2 * wider / gain) ** 2
    if needed <= users:
        return []
    if needed > MOST * users:
        return [f"More users: not even {MOST} times as many would tell {leader} and {title(row['other'])} apart."]
    ahead = f"{leader} stays {100 * gain:.1f} % above {title(row['other'])}"
    return [
        f"More users: if {ahead}, about {needed:,.0f} users would tell them apart with a chance of one half; these are {users:,}."
    ]


def other_protocol(
    leader: Candidate, candidates: dict[str, Candidate], again: pl.DataFrame, exclude_history: bool, cutoff: int
) -> list[str]:
    """Whether another adapter leads where the history is ranked (or not); nothing for cells that were published without it.

    again: user_id of those who had their test item before; a ranking of new items leaves them out, for it never shows that item.
    """
    column = ALL_ITEMS if exclude_history else NEW_ITEMS
    if not all(one.has(column) for one in candidates.values()):
        return []
    users = {name: one.gains(column, cutoff) for name, one in candidates.items()}
    if column == NEW_ITEMS:
        users = {name: gains.join(again, on="user_id", how="anti") for name, gains in users.items()}
    left = users[leader.adapter].height
    if not left:
        return ["Another protocol: none, for every user had the test item before; a ranking of new items has no right answer."]
    means = {name: float(gains["gain"].to_numpy().mean()) for name, gains in users.items()}
    best = max(means, key=lambda name: means[name])
    how = "all items are ranked" if exclude_history else "only items that the user has not had are ranked"
    which = (
        f" (over the {plural(left, 'user')} to whom the test item is new)" if left < leader.gains(column, cutoff).height else ""
    )
    name = title(leader.adapter)
    says = f"{name} is best too" if best == leader.adapter else f"{title(best)} is best instead of {name}"
    return [
        f"Another protocol: if {how} (`evaluate.exclude_history={str(not exclude_history).lower()}`), {says}, with "
        f"NDCG@{cutoff} {means[best]:.4f}{which}. Choose the protocol that your shop uses."
    ]


def other_split(leader: Candidate, candidates: dict[str, Candidate], cutoff: int) -> list[str]:
    """Whether the order of adapters is another one in published results of the dataset under another split, a line for each."""
    row, metric, found = leader.runs.row(0, named=True), f"NDCG@{cutoff}", []
    here = split_of(sequences_directory(row["dataset"]))
    conditions = ("dataset", "backbone", "encoder", "dim", "loss", "similarity", "exclude_history")
    for file in sorted(PUBLISHED.glob(f"*/{RUNS}")):
        runs = read_runs(file.parent)
        same = pl.all_horizontal(pl.col(name) == row[name] for name in conditions if name in row and name in runs.columns)
        runs = runs.filter(same & (pl.col("over") == row.get("over", "seeds")) & pl.col("adapter").is_in(list(candidates)))
        if metric not in runs.columns or runs["adapter"].n_unique() < 2:
            continue
        there = runs["split"][0] if "split" in runs.columns else LEAVE_ONE_OUT  # before there was a choice
        if there == here:
            continue
        means = dict(runs.group_by("adapter").agg(pl.col(metric).mean()).iter_rows())
        pairs = list(combinations(sorted(means), 2))
        ours = {name: candidates[name].mean(metric) for name in means}
        swapped = sum((means[a] - means[b]) * (ours[a] - ours[b]) < 0 for a, b in pairs)
        best = max(means, key=lambda name: means[name])
        name = title(leader.adapter)
        says = f"{name} is best too" if best == leader.adapter else f"{title(best)} is best instead of {name}"
        if leader.adapter not in means:
            says = f"{name} was not run there; of the others, {title(best)} is best"
        found.append(
            f"Another split, {there} ({file.parent}): {says}, with {metric} {means[best]:.4f}; {swapped} "
            f"of {len(pairs)} pairs of adapters change their order."
        )
    return found
