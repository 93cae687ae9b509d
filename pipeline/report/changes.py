"""What would change the verdict of the decision page: more users or seeds, more epochs, another protocol, another split."""

import math
from itertools import combinations
from statistics import NormalDist

import polars as pl

from common.words import plural
from pipeline.data.repeats import repeated
from pipeline.grid.published import PUBLISHED, RUNS, read_runs
from pipeline.params import Params
from pipeline.report.candidate import Candidate
from pipeline.report.significance import SIGNIFICANT
from pipeline.report.titles import title
from pipeline.report.trivial import Beaten
from pipeline.runs import sequences_directory
from pipeline.training.metrics import ALL_ITEMS, NEW_ITEMS
from pipeline.training.sequences import LEAVE_ONE_OUT, read_sequences, split_of

MOST = 100  # times the users of the data: nobody has more, so an exact number beyond says nothing


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
