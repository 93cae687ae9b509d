"""The report's conclusions: sentences that follow from the numbers."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from scipy.stats import permutation_test

from pipeline.grid.tuning import SPACE, Tuning
from pipeline.params import Train, load_params
from pipeline.report import results
from pipeline.report.conclusions import (
    budget,
    headline_metric,
    unusable_sentences,
    verdict,
    verdicts,
    with_full_softmax,
)
from pipeline.report.results import unusable_runs
from pipeline.report.tables import significance
from pipeline.report.titles import title
from tests.pipeline.report.values import BOTH, NO_RUNS, OFFICE, Cell, report_rows, summary

NOTHING = pl.DataFrame()
ROOT = Path(__file__).parents[3]


def runs(ranks: dict[Cell, list[list[int]]]) -> pl.DataFrame:
    """Write cells with these test ranks, a list per seed; return their rows, whose metrics follow the formulas of HR and NDCG."""
    found = []
    for cell, seeds in ranks.items():
        directory = Path("grid/cells") / "-".join(cell)
        directory.mkdir(parents=True)
        frames = [
            pl.DataFrame({"seed": seed, "user_id": [f"u{user}" for user in range(len(of_users))], "rank": of_users})
            for seed, of_users in enumerate(seeds)
        ]
        pl.concat(frames).write_parquet(directory / "ranks.parquet")
        for seed, of_users in enumerate(seeds):
            row: dict[str, Any] = {"NDCG@20": sum(1 / math.log2(1 + rank) for rank in of_users if rank <= 20) / len(of_users)}
            row["HR@20"] = sum(rank <= 20 for rank in of_users) / len(of_users)
            found.append(row | {"dataset": cell[0], "backbone": cell[1], "adapter": cell[2], "seed": seed})
    frame = pl.DataFrame(found).with_columns(epochs=30, best_epoch=20, over=pl.lit("seeds"), loss=pl.lit("info_nce"))
    return frame.with_columns(
        run_directory=pl.format("grid/cells/{}-{}-{}/seed-{}", "dataset", "backbone", "adapter", "seed"),
        variant=pl.lit("full"),
        dim=16,
    )


def opening(rows: pl.DataFrame, **train: int) -> list[Any]:
    """Return the verdicts on these runs, with which the report opens."""
    budget = Train.model_validate({"epochs": 200, "patience": 10} | train)
    (result_set,) = results.result_sets(rows, ["NDCG@20", "HR@20"], 20, budget)
    return verdicts(result_set)


USERS = 200
GOOD, POOR = [1] * USERS, [10] * USERS  # NDCG 1 and 1 / log2(11) = 0.2891
MIXED = [1, 10] * (USERS // 2)


@pytest.mark.usefixtures("project")
def test_a_clear_leader_is_called_best() -> None:
    """MoRec is better for every user, so no sign vector is as extreme: p is 1 / 10,001, and twice that after Holm."""
    (text,) = opening(runs({("toys", "sasrec", name): [ranks] * 2 for name, ranks in METHODS.items()}))
    assert text.startswith("MoRec is best: it has the highest NDCG@20, 1.0000, 55.2 % above SpecTran (95 % interval +")
    assert "p = 0.0002 over users, Holm-adjusted; 2 seeds)." in text
    assert "Level" not in text


METHODS = {"base": POOR, "spectran": MIXED, "morec": GOOD}


@pytest.mark.usefixtures("project")
def test_those_level_with_the_leader_are_named_and_the_rest_is_below() -> None:
    """MoRec and SpecTran are each better for about half of the users, MoRec for one user more; Base for none."""
    ahead = [1, 10] * (USERS // 2 - 1) + [1, 1]
    behind = [10, 1] * (USERS // 2)
    (text,) = opening(runs({("toys", "sasrec", n): [r] * 2 for n, r in (("base", POOR), ("spectran", behind), ("morec", ahead))}))
    assert text.startswith("Level: MoRec, SpecTran. MoRec has the highest NDCG@20, 0.6481, 0.6 % above SpecTran (95 % interval -")
    assert " is best" not in text
    assert text.endswith("Significantly below MoRec, over users: Base (ID only).")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("leader", ["spectran", "morec", "base"])
def test_no_method_is_treated_apart(leader: str) -> None:
    names = [leader, *({"spectran", "morec", "base"} - {leader})]
    (text,) = opening(runs({("toys", "sasrec", n): [r] * 2 for n, r in zip(names, (GOOD, MIXED, POOR), strict=True)}))
    assert text.startswith(f"{title(leader)} is best")


@pytest.mark.usefixtures("project")
def test_a_third_that_is_level_is_named() -> None:
    """The runner-up is always slightly worse; the third is far better for some users and far worse for others."""
    steady = [2] * USERS
    scattered = [1] * 126 + [30] * 74
    leader = [1] * 30 + [2] * 170
    (text,) = opening(
        runs({("toys", "sasrec", n): [r] for n, r in (("morec", leader), ("base", steady), ("unisrec", scattered))})
    )
    assert p_value(leader, scattered) > 0.05 > 2 * p_value(leader, steady)
    assert text.startswith("Level: MoRec, UniSRec. MoRec has the highest ")
    assert " % above Base (ID only) (" in text
    assert "Significantly below MoRec, over users: Base (ID only)." in text


def p_value(ranks: list[int], other_ranks: list[int]) -> float:
    """Return the p-value of scipy's paired permutation test of NDCG@20."""
    metrics = [[1 / math.log2(1 + rank) if rank <= 20 else 0.0 for rank in one] for one in (ranks, other_ranks)]
    return float(
        permutation_test(
            metrics, lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", n_resamples=5000, rng=0
        ).pvalue
    )


@pytest.mark.usefixtures("project")
def test_with_one_seed_chance_in_training_is_unknown() -> None:
    (text,) = opening(runs({("toys", "sasrec", name): [ranks] for name, ranks in METHODS.items()}))
    assert "one seed, so chance in training is unknown)." in text
    (text,) = opening(runs({("beauty", "sasrec", name): [ranks] * 3 for name, ranks in METHODS.items()}))
    assert "3 seeds)." in text
    assert "one seed" not in text


@pytest.mark.usefixtures("project")
def test_a_difference_within_the_spread_over_seeds_is_level_whatever_the_test_over_users_says() -> None:
    """Averaged over seeds, MoRec is better for every user, but its seeds differ by more than that."""
    (text,) = opening(runs({("toys", "sasrec", "morec"): [GOOD, POOR], ("toys", "sasrec", "base"): [[3] * USERS] * 2}))
    assert text.startswith("Level: MoRec, Base (ID only). MoRec has the highest NDCG@20, 0.6445, 28.9 % above")
    assert "p = 0.0001" in text
    # (1 + 0.2891) / 2 - 0.5, and |1 - 0.2891| / sqrt(2)
    assert text.endswith("The difference from Base (ID only), 0.1445, is within the standard deviation over seeds, 0.5027.")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"epochs": 30, "best_epoch": 25}, "runs reached the last epoch and might have improved further"),
        ({"epochs": 11, "best_epoch": 1}, "runs were best at their first epoch"),
    ],
)
def test_nothing_is_concluded_from_runs_that_were_cut_off_or_never_learned(values: dict[str, int], reason: str) -> None:
    """With at most 30 epochs and a patience of 10. One of the two runs of an adapter is unusable.

    MoRec has the highest metrics: it might be best, so nobody is. SpecTran has not: the others are compared without it.
    """
    rows = runs({("toys", "sasrec", name): [ranks] * 2 for name, ranks in METHODS.items()})
    for adapter, expected in (
        (
            "morec",
            "No conclusion: by NDCG@20, MoRec (1.0000) scored above SpecTran (0.6445), the best adapter whose runs learned",
        ),
        ("spectran", "MoRec is best: it has the highest NDCG@20, 1.0000, 245.9 % above Base (ID only)"),
    ):
        one_run = (pl.col("adapter") == adapter) & (pl.col("seed") == 1)
        changed = rows.with_columns(pl.when(one_run).then(value).otherwise(name).alias(name) for name, value in values.items())
        (text,) = opening(changed, epochs=30)
        assert text.startswith(expected)
        assert text.endswith(f"No conclusion about {title(adapter)} ({reason}).")
    every = rows.with_columns(**{name: pl.lit(value) for name, value in values.items()})
    (text,) = opening(every, epochs=30)
    assert text.startswith("No conclusion: fewer than two adapters have only runs that learned and stopped early.")
    assert f"No conclusion about Base (ID only), SpecTran and MoRec ({reason})." in text
    (text,) = opening(rows, epochs=30)
    assert "No conclusion" not in text, "patience stopped them at the last epoch: 20 + 10"


@pytest.mark.usefixtures("project")
def test_over_several_pairs_the_mean_decides_and_each_pair_has_its_line() -> None:
    """MoRec is best on Toys, SpecTran on Beauty with a larger gain; the pair with HSTU has the same users as that with SASRec."""
    ranks = {
        ("toys", "sasrec", "morec"): [GOOD],
        ("toys", "sasrec", "spectran"): [[2] * USERS],
        ("toys", "hstu", "morec"): [[2] * USERS],
        ("toys", "hstu", "spectran"): [[2] * USERS],
        ("beauty", "sasrec", "morec"): [[10] * 50],
        ("beauty", "sasrec", "spectran"): [[1] * 50],
        ("beauty", "sasrec", "base"): [[1] * 50],
    }
    overall, lines = opening(runs(ranks))
    # (0.6309 + 0.6309 + 1) / 3 and (1 + 0.6309 + 0.2891) / 3
    assert overall.startswith(
        "SpecTran is best: it has the highest NDCG@20, 0.7540, averaged over 3 pairs of dataset and backbone, 17.8 % above"
    )
    assert overall.endswith("Not run on every pair, so not compared here: Base (ID only).")
    starts = (
        "Toys, SASRec: MoRec is best: ",
        "Toys, HSTU: Level: MoRec, SpecTran. ",
        "Beauty, SASRec: Level: SpecTran, Base (ID only). ",
    )
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


@pytest.mark.usefixtures("project")
def test_the_comparison_over_pairs_is_the_mean_of_the_pairs() -> None:
    """Recomputed from the comparisons of the pairs, for datasets of different sizes."""
    rng = np.random.default_rng(0)
    ranks = {
        (dataset, backbone, adapter): [rng.integers(1, worst, users).tolist() for _ in range(2)]
        for dataset, users in (("toys", 300), ("beauty", 40))
        for backbone in ("sasrec", "hstu")
        for adapter, worst in (("base", 60), ("spectran", 25))
    }
    rows = runs(ranks)
    (result_set,) = results.result_sets(rows, ["NDCG@20", "HR@20"], 20, Train(epochs=200))
    for metric in ("NDCG@20", "HR@20"):
        (overall,) = result_set.overall.filter(metric=metric).iter_rows(named=True)
        pairs = result_set.comparisons.filter(metric=metric)
        assert pairs.height == 4
        for column in ("mean", "mean_other", "difference"):
            assert overall[column] == pytest.approx(pairs[column].to_numpy().mean())
        assert overall["users"] == 340
        assert overall["low"] < overall["improvement"] < overall["high"]


@pytest.mark.usefixtures("project")
def test_the_first_sentence_agrees_with_the_table_of_significance() -> None:
    """Forty grids with random ranks: an adapter is called best exactly if every p in the table of significance is below 0.05."""
    rng = np.random.default_rng(1)
    outcomes = []
    for number in range(40):
        worst = {name: int(rng.integers(30, 60)) for name in ("base", "morec", "spectran")}
        ranks = {(f"d{number}", "sasrec", name): [rng.integers(1, high, 150).tolist()] for name, high in worst.items()}
        rows = runs(ranks)
        (result_set,) = results.result_sets(rows, ["NDCG@20", "HR@20"], 20, Train(epochs=200))
        (text,) = verdicts(result_set)
        table = significance(result_set.comparisons)
        sure = all(row[4].mark == "best" for row in table.blocks[0].rows)
        assert (" is best: " in text) == sure
        assert text.startswith("Level: ") != sure
        outcomes.append(sure)
    assert 0 < sum(outcomes) < 40


def test_an_adapter_alone_is_compared_with_nothing() -> None:
    only = summary({("office", "sasrec", "base"): [0.1, 0.2]})
    assert verdict(only, NOTHING, NO_RUNS) == "Only Base (ID only) was run: there is nothing to compare it with."


@pytest.mark.usefixtures("project")
def test_adapters_without_a_pair_in_common_are_not_compared() -> None:
    overall, lines = opening(runs({("toys", "sasrec", "morec"): [GOOD], ("beauty", "sasrec", "base"): [POOR]}))
    assert overall == "No conclusion: no two adapters were run on each of the 2 pairs of dataset and backbone."
    assert lines[0] == "Toys, SASRec: Only MoRec was run: there is nothing to compare it with."


def test_of_several_sets_each_says_how_it_was_set() -> None:
    def said(loss: str | None, **others: bool) -> str:
        return str(verdicts(results.ResultSet(loss, summary(BOTH), NOTHING, NOTHING, NO_RUNS), **others)[0])

    assert said("cross_entropy", alone=False).startswith("Tuned, with the full softmax: No conclusion")
    assert said(None, alone=False).startswith("With the settings of params.yaml: No conclusion")
    assert said(None).startswith("No conclusion")


def test_the_headline_is_ndcg_at_the_largest_cutoff_in_whatever_order_they_are() -> None:
    assert headline_metric(pl.DataFrame({"metric": ["NDCG@100", "NDCG@20", "HR@200"]})) == "NDCG@100"


def test_runs_from_which_nothing_is_concluded_are_named() -> None:
    train = load_params(ROOT / "params.yaml").train

    def said(rows: pl.DataFrame) -> str:
        return unusable_sentences(unusable_runs(rows, train), rows.height, train)

    found = report_rows(OFFICE).with_columns(variant=pl.lit("full"), loss=pl.lit("info_nce"))
    assert said(found) == ""
    first = (pl.col("adapter") == "alphafuse") & (pl.col("seed") == 1)
    found = found.with_columns(best_epoch=pl.when(first).then(1).otherwise("best_epoch"))
    assert said(found).startswith(
        f"Of {found.height} runs, 1 never improved on the validation of the first epoch; `train.patience` or `train.epochs` may "
        "have stopped them before they learned: Office, SASRec, AlphaFuse, dim 16 (seed 1)."
    )
    every = found.with_columns(best_epoch=1)
    assert "AlphaFuse, dim 16 (seeds 0, 1); " in said(every)
    capped = found.with_columns(epochs=200, best_epoch=pl.when(first).then(191).otherwise(190))
    text = said(capped)
    assert "1 reached the last epoch, 200, less than 10 epochs after their best" in text
    assert "AlphaFuse, dim 16 (seed 1)." in text
    assert "SpecTran" not in text


def test_the_full_softmax_is_compared_over_the_cells_of_both_losses() -> None:
    """Cells may be missing for either loss."""
    sampled = results.ResultSet("info_nce", summary(OFFICE), NOTHING, NOTHING, NO_RUNS)
    strong = {
        ("office", "sasrec", "base"): [0.20],
        ("office", "sasrec", "spectran"): [0.25],
        ("office", "sasrec", "morec"): [0.51],
    }
    full = results.ResultSet("cross_entropy", summary(strong), NOTHING, NOTHING, NO_RUNS)
    text = with_full_softmax([sampled, full])
    assert "tuned Base goes from an NDCG@20 of 0.1500 to 0.2000 (average over 1 pair)" in text
    assert text.endswith("relative to Base: SpecTran, +120.0 % with negatives; SpecTran, +25.0 % with the whole catalogue.")
    assert with_full_softmax([sampled]) == ""
    cut_short = replace(full, unusable=pl.DataFrame({"adapter": ["spectran"], "why": ["not finished"]}))
    assert with_full_softmax([sampled, cut_short]) == "", "no other adapter has runs that support a conclusion under both"
    only = {cell: values for cell, values in strong.items() if cell[2] == "base"}
    assert with_full_softmax([sampled, results.ResultSet("cross_entropy", summary(only), NOTHING, NOTHING, NO_RUNS)]) == ""


@pytest.mark.usefixtures("project")
def test_the_budget_is_stated_for_cells_with_a_valid_choice(set_params: Callable[..., None]) -> None:
    """With another budget in params.yaml, a missing choice, or runs with other settings, the cell is named instead."""
    Path("grid").mkdir()
    SPACE.write_text("backbones:\n  sasrec:\n    dropout: [0.0, 0.5]\n")
    set_params({"grid.tuning": {"datasets": ["tiny"], "backbones": ["sasrec"], "losses": ["info_nce"], "trials": 2, "seed": 4}})
    params = load_params()
    frames = []
    for adapter in ("base", "spectran"):
        tuning = Tuning(params, "tiny", "sasrec", adapter, "info_nce")
        tuning.file.parent.mkdir(exist_ok=True)
        setting = {"backbone.dropout": 0.5}
        finalist = {"trial": 1, "validation": {4: 0.1, 5: 0.2}, "setting": setting}
        choice = {"chosen": setting, "finalists": [finalist], "conditions": tuning.conditions}
        tuning.file.write_text(yaml.safe_dump(choice))
        directory = Path("grid/cells", adapter)
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(tuning.run(setting, 0).config()))
        names = {"dataset": "tiny", "backbone": "sasrec", "adapter": adapter, "loss": "info_nce", "seed": 0}
        frames.append(names | {"run_directory": str(directory)})
    found = pl.DataFrame(frames)
    text = budget(params, found)
    assert text.startswith(
        "Every method was tuned separately on validation, with the same budget: 2 trials (the first uses the settings of "
        "params.yaml)"
    )
    assert "full run with seed 4. The best settings and the default, three in all at most and none that failed, were " in text
    assert "also trained with seed 5; the best of these under that seed was chosen." in text, "test_tuning.py tests the choice"
    assert "another budget" not in text
    config = json.loads(Path("grid/cells/base/config.json").read_text())
    config["settings"]["backbone"]["dropout"] = 0.2
    Path("grid/cells/base/config.json").write_text(json.dumps(config))
    text = budget(params, found)
    assert text.startswith("Every other method")
    assert (
        "another budget, space, setting or data than params.yaml and grid/space.yaml define: tiny-sasrec-base-info_nce;" in text
    )
    set_params({"grid.tuning.trials": 1})
    text = budget(load_params(), found)
    assert text.startswith("Tuned with another budget")
    assert "same budget" not in text
