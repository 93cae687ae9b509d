"""What each figure shows, in a sentence or two: its alternative text and the start of its caption."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from common.words import capitalised, enumeration
from pipeline.grid.cells import KEYS, PAIR, SPECTRAN
from pipeline.report.canvas import panel_title
from pipeline.report.figures import gain_text
from pipeline.report.gains import ALL_PAIRS, BASE
from pipeline.report.mean_ranks import MeanRanks
from pipeline.report.overviews import attention_weights
from pipeline.report.significance import SIGNIFICANT
from pipeline.report.table_data import DIMENSION_KEYS
from pipeline.report.titles import title

NO_BASE = "Base has runs that support no conclusion, so nothing is said of gains over it."
LEADING = 10  # directions whose share of variance the sentence on Figure 1 gives


def per_block(data: pl.DataFrame, say: Callable[[pl.DataFrame], str]) -> str:
    """Return a sentence for each block, which starts with the block's name if there are several."""
    blocks = data.partition_by(PAIR, maintain_order=True) if data.height else []
    several = len(blocks) > 1
    return " ".join(f"{panel_title(block)}: {say(block)}" if several else capitalised(say(block)) for block in blocks)


def forest(gains: pl.DataFrame, unusable: pl.DataFrame) -> str:
    """Say who gains most over Base, and which intervals exclude 0. gains: from `gains.over_base`.

    Nothing is said of adapters with runs that support no conclusion.
    """

    def say(block: pl.DataFrame) -> str:
        first = block.row(0, named=True)
        above, below, level = (
            enumeration([title(name) for name in block.filter(condition)["adapter"]])
            for condition in (pl.col("low") > 0, pl.col("high") < 0, (pl.col("low") <= 0) & (pl.col("high") >= 0))
        )
        name, gain = title(first["adapter"]), gain_text(first)
        parts = [
            f"{name} gains most over Base, {gain}" if first["gain"] > 0 else f"no adapter gains over Base; {name} has {gain}"
        ]
        parts += [f"the interval is above 0 for {above}"] if above else ["no interval is above 0"]
        parts += [f"around 0 for {level}"] if level else []
        parts += [f"below 0 for {below}"] if below else []
        return ", ".join(parts) + "."

    if BASE in unusable["adapter"]:
        return NO_BASE
    known = without(gains.filter(pl.col("gain").is_not_null() & (pl.col("adapter") != BASE)), unusable)
    return per_block(known.filter(pl.col("dataset") == ALL_PAIRS) if ALL_PAIRS in known["dataset"] else known, say)


def without(data: pl.DataFrame, unusable: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of adapters that have no run in the same block that supports no conclusion; for all pairs, in no block."""
    keys = [key for key in KEYS if key in unusable.columns]
    every = unusable.with_columns(pl.lit(ALL_PAIRS).alias(key) for key in PAIR)
    return data.join(unusable, on=keys, how="anti", maintain_order="left").join(every, on=keys, how="anti", maintain_order="left")


def comparison(summary: pl.DataFrame, metric: str, unusable: pl.DataFrame) -> str:
    """Say which adapters have the highest and the lowest metric, of those whose runs support a conclusion."""

    def say(block: pl.DataFrame) -> str:
        named = [f"{title(row['adapter'])}, {row['mean']:.4f}" for row in block.sort("mean", descending=True).to_dicts()]
        ends = f"; the lowest is {named[-1]}" if len(named) > 1 else ""
        return f"the highest {metric} is {named[0]}{ends}."

    return per_block(without(summary.filter(pl.col("metric") == metric), unusable), say)


def groups(grouped: pl.DataFrame, by: str, unusable: pl.DataFrame) -> str:
    """Say who gains most over Base in each group, and how much SpecTran does. grouped: from `gains.by_group`."""

    def say(block: pl.DataFrame) -> str:
        parts = []
        for part in block.partition_by("group", maintain_order=True):
            best = part.sort("gain", descending=True).row(0, named=True)
            named = f"{part['group'][0]} {title(best['adapter'])} {100 * best['gain']:+.0f} %"
            ours = part.filter(pl.col("adapter") == SPECTRAN)["gain"].to_list()
            parts.append(f"{named} ({title(SPECTRAN)} {100 * ours[0]:+.0f} %)" if ours and best["adapter"] != SPECTRAN else named)
        return f"the largest gain over Base is, by group: {'; '.join(parts)}."

    if BASE in unusable["adapter"]:
        return NO_BASE
    return per_block(without(grouped.filter(pl.col("by") == by), unusable), say)


def dimensions(summary: pl.DataFrame, metric: str, unusable: pl.DataFrame) -> str:
    """Say which adapter is highest at each dim. summary: the data of Table 4; unusable: its runs that support no conclusion."""

    def say(block: pl.DataFrame) -> str:
        best = [
            f"{part['dim'][0]} {title(part.sort('mean', descending=True)['adapter'][0])}"
            for part in block.sort("dim").partition_by("dim", maintain_order=True)
        ]
        return f"the highest {metric} has, by dim: {', '.join(best)}."

    known = summary.filter(metric=metric).join(unusable, on=DIMENSION_KEYS, how="anti", maintain_order="left")
    return per_block(known, say)


def cost(cost: pl.DataFrame, summary: pl.DataFrame, metric: str, unusable: pl.DataFrame) -> str:
    """Say which adapter trains fastest, and how long the one with the highest metric takes."""
    quality = summary.filter(pl.col("metric") == metric).select(*KEYS, "mean")

    def say(block: pl.DataFrame) -> str:
        fast = block.sort("training_seconds").row(0, named=True)
        best = block.sort("mean", descending=True).row(0, named=True)
        return (
            f"{title(fast['adapter'])} trains fastest, {fast['training_seconds']:.0f} s a run with {metric} {fast['mean']:.4f}; "
            f"{title(best['adapter'])}, the highest with {best['mean']:.4f}, takes {best['training_seconds']:.0f} s."
        )

    return per_block(without(cost.join(quality, on=KEYS, how="inner", maintain_order="left"), unusable), say)


def spectra(rows: pl.DataFrame) -> str:
    """Say how much of the variance of the text's part the leading directions hold: the extremes and SpecTran."""

    def say(block: pl.DataFrame) -> str:
        shares = {}
        for row in block.unique("adapter", keep="first", maintain_order=True).iter_rows(named=True):
            curve = pl.read_csv(Path(row["run_directory"]) / "spectrum.csv", glob=False)["cumulative_share"]
            shares[row["adapter"]] = float(curve[min(LEADING, len(curve)) - 1])
        order = sorted(shares, key=lambda name: shares[name])
        shown = dict.fromkeys([order[-1], *([SPECTRAN] if SPECTRAN in shares else []), order[0]])
        named = ", ".join(f"{title(name)} {100 * shares[name]:.0f} %" for name in shown)
        return f"share of variance in the {LEADING} leading directions, from the highest to the lowest: {named}."

    return per_block(rows, say)


def learning_curves(rows: pl.DataFrame) -> str:
    """Say after how many epochs validation was best: the extremes."""

    def say(block: pl.DataFrame) -> str:
        epochs = block.group_by("adapter", maintain_order=True).agg(pl.col("best_epoch").mean()).sort("best_epoch")
        named = [f"{row['best_epoch']:.0f} for {title(row['adapter'])}" for row in epochs.iter_rows(named=True)]
        return f"epochs until the best validation: {named[0]}" + (f" to {named[-1]}." if len(named) > 1 else ".")

    return per_block(rows, say)


def tuning(slopes: pl.DataFrame, metric: str) -> str:
    """Say which adapter is highest under each setting, of those whose runs support a conclusion.

    slopes: from `overviews.slopes`.
    """

    def say(block: pl.DataFrame) -> str:
        best = []
        for part in block.partition_by("setting", maintain_order=True):
            row = part.sort("mean", descending=True).row(0, named=True)
            best.append(f"{row['setting'].replace(chr(10), ' ')} {title(row['adapter'])}, {row['mean']:.4f}")
        return f"the highest {metric} has, by setting: {'; '.join(best)}."

    return per_block(slopes.filter(~pl.col("unusable")), say)


def mean_ranks(found: MeanRanks) -> str:
    """Say who has the best mean rank, and who is within the critical difference of it."""
    ranks: dict[str, float] = dict(found.ranks.iter_rows())
    best = min(ranks.values())
    leaders = [title(name) for name, rank in ranks.items() if rank == best]
    level = [title(name) for name, rank in ranks.items() if best < rank <= best + found.critical]
    differ = "differ beyond chance" if found.p < SIGNIFICANT else "are not told apart"
    text = f"{enumeration(leaders)} {'has' if len(leaders) == 1 else 'have'} the best mean rank, {best:.2f} "
    text += f"over {found.blocks} pairs; within the critical difference of {found.critical:.2f} from it: "
    text += f"{enumeration(level) or 'none'}. "
    p = f"p = {found.p:.3f}" if found.p >= 0.001 else "p < 0.001"
    return text + f"As a whole, the ranks {differ} (Friedman's test, {p})."


def attention(rows: pl.DataFrame) -> str:
    """Say how much of SpecTran's weight is on directions that a truncation to dim would drop."""

    def say(block: pl.DataFrame) -> str:
        weights = attention_weights(Path(block["run_directory"][0]))
        if weights is None:
            return "not known."
        size = np.abs(weights)
        beyond = size[:, size.shape[0] :].sum() / size.sum()
        return (
            f"{100 * beyond:.0f} % of the absolute weight of SpecTran's W is on directions after the first {size.shape[0]}, "
            "which a truncation would drop; the diagonal includes D."
        )

    return per_block(rows.filter(pl.col("adapter") == SPECTRAN).unique(PAIR, keep="first", maintain_order=True), say)
