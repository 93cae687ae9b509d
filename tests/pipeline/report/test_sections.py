"""The report: words that follow from the numbers, HTML that is whole and needs no network, figures that can be read."""

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from scipy.stats import permutation_test

from pipeline.grid.tuning import SPACE, Tuning
from pipeline.params import Train, load_params
from pipeline.report import formats, results, tables
from pipeline.report.figures import GROUND, INK, Figures
from pipeline.report.html import report_html
from pipeline.report.sections import (
    Figure,
    Folded,
    Section,
    budget,
    headline_metric,
    report_markdown,
    sections,
    unusable_named,
    verdict,
    verdicts,
    with_a_stronger_loss,
)
from tests.pipeline.report.values import BOTH, OFFICE

NAMES = results.table_metrics([10, 20])
NOTHING = pl.DataFrame()
NOBODY = pl.DataFrame(schema={"adapter": pl.String, "why": pl.String})
ROOT = Path(__file__).parents[3]
Cell = tuple[str, str, str]


def rows(values: dict[Cell, list[float]]) -> pl.DataFrame:
    """A row per seed; every metric is the value given."""
    return pl.DataFrame(
        [
            dict(zip(("dataset", "backbone", "adapter"), cell, strict=True))
            | {"encoder": "random", "dim": 16, "seed": seed, **dict.fromkeys(NAMES, value), "trainable_parameters": 1234}
            | {"epochs": 5, "best_epoch": 3, "training_seconds": 2.5, "seconds_per_epoch": 0.5, "inference_seconds": 0.1}
            | {"device": "x86_64", "threads": 1, "over": "seeds", "run_directory": f"grid/cells/{'-'.join(cell)}/seed-{seed}"}
            for cell, seeds in values.items()
            for seed, value in enumerate(seeds)
        ]
    )


def summary(values: dict[Cell, list[float]]) -> pl.DataFrame:
    return results.summarise(rows(values), NAMES)


def runs(ranks: dict[Cell, list[list[int]]]) -> pl.DataFrame:
    """Cells in grid/cells with these test ranks, a list per seed, and their rows: metrics from the formula of HR and NDCG."""
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


def told(rows: pl.DataFrame, **train: int) -> list[Any]:
    """What the report says first of these runs."""
    budget = Train.model_validate({"epochs": 200, "patience": 10} | train)
    (result_set,) = results.result_sets(rows, ["NDCG@20", "HR@20"], 20, budget)
    return verdicts(result_set)


USERS = 200
GOOD, POOR = [1] * USERS, [10] * USERS  # NDCG 1 and 1 / log2(11) = 0.2891
MIXED = [1, 10] * (USERS // 2)


# ------------------------------------------------------------------------------------------------------------------------ words


@pytest.mark.usefixtures("project")
def test_a_clear_leader_is_called_best() -> None:
    """Every user is better off with MoRec: no sign-flip is as extreme, so that p is 1 / 10,001, twice that after Holm."""
    (text,) = told(runs({("toys", "sasrec", name): [ranks] * 2 for name, ranks in METHODS.items()}))
    assert text.startswith("MoRec is best (NDCG@20 1.0000, 55.2 % above the runner-up, SpecTran: 95 % interval +")
    assert "p = 0.0002 over users, Holm-adjusted; 2 seeds)." in text
    assert "Level" not in text


METHODS = {"base": POOR, "spectran": MIXED, "morec": GOOD}


@pytest.mark.usefixtures("project")
def test_a_level_pair_is_called_level_and_the_rest_below() -> None:
    """MoRec and SpecTran serve one half of the users each, MoRec one user more; Base serves none."""
    ahead = [1, 10] * (USERS // 2 - 1) + [1, 1]
    behind = [10, 1] * (USERS // 2)
    (text,) = told(runs({("toys", "sasrec", n): [r] * 2 for n, r in (("base", POOR), ("spectran", behind), ("morec", ahead))}))
    assert text.startswith(
        "Level: MoRec, SpecTran (MoRec leads, NDCG@20 0.6481, 0.6 % above the runner-up, SpecTran: 95 % interval -"
    )
    assert " is best" not in text
    assert text.endswith("Beyond chance below MoRec: Base (ID only).")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("leader", ["spectran", "morec", "base"])
def test_no_method_is_treated_apart(leader: str) -> None:
    names = [leader, *({"spectran", "morec", "base"} - {leader})]
    (text,) = told(runs({("toys", "sasrec", n): [r] * 2 for n, r in zip(names, (GOOD, MIXED, POOR), strict=True)}))
    assert text.startswith(f"{tables.title(leader)} is best")


@pytest.mark.usefixtures("project")
def test_who_is_level_though_third_is_named() -> None:
    """The runner-up is steadily a little below; the third is far better for some users and far worse for others."""
    steady = [2] * USERS
    scattered = [1] * 126 + [30] * 74
    leader = [1] * 30 + [2] * 170
    (text,) = told(runs({("toys", "sasrec", n): [r] for n, r in (("morec", leader), ("base", steady), ("unisrec", scattered))}))
    assert p_value(leader, scattered) > 0.05 > 2 * p_value(leader, steady)
    assert text.startswith("Level: MoRec, UniSRec (MoRec leads, ")
    assert "the runner-up, Base (ID only)" in text
    assert "Beyond chance below MoRec: Base (ID only)." in text


def p_value(ours: list[int], theirs: list[int]) -> float:
    """scipy's paired permutation test of NDCG@20."""
    figures = [[1 / math.log2(1 + rank) if rank <= 20 else 0.0 for rank in ranks] for ranks in (ours, theirs)]
    return float(
        permutation_test(
            figures, lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", n_resamples=5000, rng=0
        ).pvalue
    )


@pytest.mark.usefixtures("project")
def test_one_seed_is_said_to_leave_chance_in_training_open() -> None:
    (text,) = told(runs({("toys", "sasrec", name): [ranks] for name, ranks in METHODS.items()}))
    assert "one seed, so chance in training is not known)." in text
    (text,) = told(runs({("beauty", "sasrec", name): [ranks] * 3 for name, ranks in METHODS.items()}))
    assert "3 seeds)." in text
    assert "one seed" not in text


@pytest.mark.usefixtures("project")
def test_a_gap_within_the_spread_over_seeds_is_level_whatever_the_users_say() -> None:
    """Averaged over seeds MoRec is ahead for every user, but its seeds differ by more than that."""
    (text,) = told(runs({("toys", "sasrec", "morec"): [GOOD, POOR], ("toys", "sasrec", "base"): [[3] * USERS] * 2}))
    assert text.startswith("Level: MoRec, Base (ID only) (MoRec leads, NDCG@20 0.6445, 28.9 % above")
    assert "p = 0.0001" in text
    # (1 + 0.2891) / 2 - 0.5, and |1 - 0.2891| / sqrt(2)
    assert text.endswith("The runner-up's difference, 0.1445, is within the spread over seeds, 0.5027.")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"epochs": 30, "best_epoch": 25}, "the last epoch ended runs that might have got better"),
        ({"epochs": 11, "best_epoch": 1}, "runs were best at their first epoch"),
    ],
)
def test_nothing_is_concluded_from_runs_that_were_cut_off_or_never_learned(values: dict[str, int], reason: str) -> None:
    """With a cap of 30 epochs and a patience of 10. MoRec has the highest figures, and one unusable run of two."""
    rows = runs({("toys", "sasrec", name): [ranks] * 2 for name, ranks in METHODS.items()})
    mine = (pl.col("adapter") == "morec") & (pl.col("seed") == 1)
    changed = rows.with_columns(pl.when(mine).then(value).otherwise(name).alias(name) for name, value in values.items())
    (text,) = told(changed, epochs=30)
    assert text.startswith("SpecTran is best (NDCG@20 0.6445, 123.0 % above the runner-up, Base (ID only)")
    assert text.endswith(f"Nothing is concluded of MoRec ({reason}).")
    every = rows.with_columns(**{name: pl.lit(value) for name, value in values.items()})
    (text,) = told(every, epochs=30)
    assert text.startswith("No conclusion: fewer than two adapters have runs that learned and ended by themselves.")
    assert f"Nothing is concluded of Base (ID only), SpecTran and MoRec ({reason})." in text
    (text,) = told(rows, epochs=30)
    assert "Nothing is concluded" not in text, "patience ended them at the last epoch: 20 + 10"


@pytest.mark.usefixtures("project")
def test_over_several_pairs_the_mean_decides_and_each_pair_has_its_line() -> None:
    """MoRec is best on Toys, SpecTran on Beauty, where it gains more; HSTU counts the same users again."""
    ranks = {
        ("toys", "sasrec", "morec"): [GOOD],
        ("toys", "sasrec", "spectran"): [[2] * USERS],
        ("toys", "hstu", "morec"): [[2] * USERS],
        ("toys", "hstu", "spectran"): [[2] * USERS],
        ("beauty", "sasrec", "morec"): [[10] * 50],
        ("beauty", "sasrec", "spectran"): [[1] * 50],
        ("beauty", "sasrec", "base"): [[1] * 50],
    }
    overall, lines = told(runs(ranks))
    # (0.6309 + 0.6309 + 1) / 3 and (1 + 0.6309 + 0.2891) / 3
    assert overall.startswith("SpecTran is best (NDCG@20 0.7540, averaged over 3 pairs of dataset and backbone, 17.8 % above")
    assert overall.endswith("Not run on every pair, so not compared here: Base (ID only).")
    assert [line.partition(" (")[0] for line in lines] == [
        "Toys, SASRec: MoRec is best",
        "Toys, HSTU: Level: MoRec, SpecTran",
        "Beauty, SASRec: Level: SpecTran, Base",
    ]


@pytest.mark.usefixtures("project")
def test_the_comparison_over_pairs_is_the_mean_of_the_pairs() -> None:
    """Recomputed from the pairs' own comparisons, for datasets of different sizes."""
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
def test_the_first_sentence_never_claims_what_the_test_beside_it_denies() -> None:
    """Forty grids with drawn ranks: best is said where, and only where, the table of significance has every p below 0.05."""
    rng = np.random.default_rng(1)
    said = []
    for number in range(40):
        worst = {name: int(rng.integers(30, 60)) for name in ("base", "morec", "spectran")}
        ranks = {(f"d{number}", "sasrec", name): [rng.integers(1, high, 150).tolist()] for name, high in worst.items()}
        rows = runs(ranks)
        (result_set,) = results.result_sets(rows, ["NDCG@20", "HR@20"], 20, Train(epochs=200))
        (text,) = verdicts(result_set)
        table = tables.significance(result_set.comparisons)
        sure = all(row[4].mark == "best" for row in table.blocks[0].rows)
        assert (" is best (" in text) == sure
        assert text.startswith("Level: ") != sure
        said.append(sure)
    assert 0 < sum(said) < 40


def test_an_adapter_alone_is_compared_with_nothing() -> None:
    alone = summary({("office", "sasrec", "base"): [0.1, 0.2]})
    assert verdict(alone, NOTHING, NOBODY) == "Only Base (ID only) was run: there is nothing to compare it with."


@pytest.mark.usefixtures("project")
def test_adapters_without_a_pair_in_common_are_not_compared() -> None:
    overall, lines = told(runs({("toys", "sasrec", "morec"): [GOOD], ("beauty", "sasrec", "base"): [POOR]}))
    assert overall == "No conclusion: no two adapters were run on each of the 2 pairs of dataset and backbone."
    assert lines[0] == "Toys, SASRec: Only MoRec was run: there is nothing to compare it with."


def test_the_tuned_set_says_how_it_was_set() -> None:
    text = verdict(summary(BOTH), NOTHING, NOBODY, "cross_entropy")
    assert text.startswith("Tuned, with the full softmax: No conclusion")


def test_the_headline_is_ndcg_at_the_largest_cutoff_in_whatever_order_they_are() -> None:
    assert headline_metric(pl.DataFrame({"metric": ["NDCG@100", "NDCG@20", "HR@200"]})) == "NDCG@100"


def test_runs_from_which_nothing_is_concluded_are_named() -> None:
    params = load_params(ROOT / "params.yaml")
    found = rows(OFFICE).with_columns(variant=pl.lit("full"), loss=pl.lit("info_nce"))
    assert unusable_named(found, params) == ""
    first = (pl.col("adapter") == "alphafuse") & (pl.col("seed") == 1)
    found = found.with_columns(best_epoch=pl.when(first).then(1).otherwise("best_epoch"))
    assert unusable_named(found, params).startswith(
        f"Of {found.height} runs 1 ended without a better validation than the first epoch's; `train.patience` may have ended "
        "them before they learned: Office, SASRec, AlphaFuse, dim 16 (seed 1)."
    )
    every = found.with_columns(best_epoch=1)
    assert "AlphaFuse, dim 16 (seeds 0, 1); " in unusable_named(every, params)
    capped = found.with_columns(epochs=200, best_epoch=pl.when(first).then(191).otherwise(190))
    text = unusable_named(capped, params)
    assert "1 reached epoch 200, the last, with their best less than 10 epochs before" in text
    assert "AlphaFuse, dim 16 (seed 1)." in text
    assert "SpecTran" not in text


def test_the_stronger_loss_is_told_of_what_both_losses_have() -> None:
    """Cells may be missing under either."""
    sampled = results.ResultSet("info_nce", summary(OFFICE), NOTHING, NOTHING, NOBODY)
    strong = {
        ("office", "sasrec", "base"): [0.20],
        ("office", "sasrec", "spectran"): [0.25],
        ("office", "sasrec", "morec"): [0.51],
    }
    full = results.ResultSet("cross_entropy", summary(strong), NOTHING, NOTHING, NOBODY)
    text = with_a_stronger_loss([sampled, full])
    assert "tuned Base goes from an NDCG@20 of 0.1500 to 0.2000 (average over 1 pair)" in text
    assert text.endswith("beside Base: SpecTran, +120.0 % with negatives; SpecTran, +25.0 % with the whole catalogue.")
    assert with_a_stronger_loss([sampled]) == ""
    only = {cell: values for cell, values in strong.items() if cell[2] == "base"}
    assert with_a_stronger_loss([sampled, results.ResultSet("cross_entropy", summary(only), NOTHING, NOTHING, NOBODY)]) == ""


@pytest.mark.usefixtures("project")
def test_the_budget_is_said_of_cells_that_a_valid_choice_made(set_params: Callable[..., None]) -> None:
    """Another budget in params.yaml, a lost choice, or runs with other settings: the cell is named instead."""
    Path("grid").mkdir()
    SPACE.write_text("backbones:\n  sasrec:\n    dropout: [0.0, 0.5]\n")
    set_params({"grid.tuning": {"datasets": ["tiny"], "backbones": ["sasrec"], "losses": ["info_nce"], "trials": 2, "seed": 4}})
    params = load_params()
    frames = []
    for adapter in ("base", "spectran"):
        tuning = Tuning(params, "tiny", "sasrec", adapter, "info_nce")
        tuning.file.parent.mkdir(exist_ok=True)
        setting = {"backbone.dropout": 0.5}
        finalist = {"trial": 1, "mean": 0.2, "setting": setting}
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
        "Every method tuned by itself on validation, with the same budget: 2 trials (its settings in params.yaml"
    )
    assert "full run under seed 4; the default and the best two others also under seed 5" in text
    assert "another budget" not in text
    config = json.loads(Path("grid/cells/base/config.json").read_text())
    config["settings"]["backbone"]["dropout"] = 0.2
    Path("grid/cells/base/config.json").write_text(json.dumps(config))
    text = budget(params, found)
    assert text.startswith("Every other method")
    assert "another budget, space, setting or data than params.yaml and grid/space.yaml give: tiny-sasrec-base-info_nce;" in text
    set_params({"grid.tuning.trials": 1})
    text = budget(load_params(), found)
    assert text.startswith("Tuned with another budget")
    assert "same budget" not in text


# ------------------------------------------------------------------------------------------------------------------- the report


@pytest.fixture
def made(project: Path) -> tuple[list[Section], dict[str, formats.Table]]:
    """The report of two adapters on the tiny dataset, with figures in `figures`."""
    values = {("tiny", "sasrec", adapter): [0.1, 0.2] for adapter in ("base", "spectran")}
    found = rows(values)
    for run_directory in found["run_directory"]:
        directory = Path(run_directory)
        directory.mkdir(parents=True)
        (directory / "config.json").write_text('{"fingerprint": "0123456789abcdef"}')
        (directory / "analysis.json").write_text(json.dumps({"learned": {"principal_weight": 2.0, "subordinate_weight": 3.0}}))
        (directory / "history.csv").write_text("epoch,NDCG@20\n1,0.1\n2,0.2\n")
    params = load_params()
    summed = results.summarise(found, NAMES)
    cost = results.cost(found)
    result_sets = [results.ResultSet(None, summed, NOTHING, NOTHING, NOBODY)]
    shown = tables.all_tables(params, found, [], result_sets, cost)
    Path("figures").mkdir()
    figures = Figures(Path("figures"), ["base", "spectran"])
    figures.comparison(summed, "NDCG@20")
    figures.learning_curves(found)
    figures.cost(cost, summed, "NDCG@20")
    return sections(params, found, result_sets, shown, {"comparison", "learning-curves", "cost"}, []), shown


class Page(HTMLParser):
    """What a browser would see: tags that close, ids, addresses, tables."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.cell: list[str] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.addresses += [value for name, value in attributes if name in ("href", "src", "xlink:href", "action", "srcset")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = []

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th") and self.cell is not None:
            self.tables[-1][-1].append("".join(self.cell))
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.append(data)


def test_the_page_is_whole_and_needs_no_network(made: tuple[list[Section], dict[str, formats.Table]]) -> None:
    text = report_html(made[0], Path("figures"))
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)), "inlined figures do not share names"
    assert all(address.startswith("#") or address == "data:," for address in page.addresses), page.addresses
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert text.count("<svg") == 3
    assert INK not in text, "ink follows light and dark"
    assert GROUND not in text
    assert text.index("<h1>Which adapter?</h1>") < text.index("<nav"), "the conclusion comes first"


def test_the_pages_tables_are_those_of_the_csv(made: tuple[list[Section], dict[str, formats.Table]]) -> None:
    text = report_html(made[0], Path("figures"))
    page = Page(text)
    table = next(table for table in page.tables if table[0][:2] == ["Adapter", "NDCG@10"])
    shown = {(row[0], name): cell for row in table[1:] for name, cell in zip(table[0][1:], row[1:], strict=True)}
    data = made[1]["table2"].data
    assert data.height == 8
    for row in data.iter_rows(named=True):
        assert shown[tables.title(row["adapter"]), row["metric"]] == f"{row['mean']:.4f} ± {row['std']:.4f}"
    headings = re.findall(r"<thead>.*?</thead>", text)
    assert len(headings) == len(page.tables)
    assert all(heading.count("<th ") == heading.count("<button") for heading in headings), "every column sorts, by keyboard too"


def test_a_datasets_name_is_text_not_markup(made: tuple[list[Section], dict[str, formats.Table]]) -> None:
    told = [Section("<script>", ["a `b` & <c>"])]
    text = report_html(told, Path("figures"))
    assert "<h1>&lt;script&gt;</h1>" in text
    assert "a <code>b</code> &amp; &lt;c&gt;" in text


def test_no_name_is_markup_in_either_report(project: Path) -> None:
    """Wherever a word may stand: in headings, sentences, lists, heads, cells, notes, captions and summaries."""
    name = '<img src="x" onerror="y">'
    entry = formats.Entry(name)
    block = formats.Block(name, [name, name], [[entry, formats.Entry(name, mark="second")]], [[entry, entry]])
    table = formats.Table("data", name, [block], [name, f"`{name}` {name}"], NOTHING)
    Path("figures").mkdir()
    Path("figures/x.svg").write_text('<svg viewBox="0 0 10 10"><path/></svg>')
    told = [Section(name, [name, [name, name], table, Figure("x", name), Folded(name, table)])]
    page = Page(report_html(told, Path("figures")))
    assert page.open == []
    assert "x" not in page.addresses
    assert [[*row] for row in page.tables[0]] == [[name, name]] * 3
    text = report_markdown(told)
    code = re.findall(r"`[^`]*`", text)
    assert code == [f"`{name}`"], "what is code stays as it is"
    tags = set(re.findall(r"(?<!\\)<\w+", text.replace(code[0], "")))
    assert tags == {"<u"}, "the second best is underlined; nothing else is HTML"


def test_the_report_holds_data_costs_settings_and_what_was_not_asked_for(
    made: tuple[list[Section], dict[str, formats.Table]],
) -> None:
    text = report_markdown(made[0])
    users = pl.read_parquet("data/sequences/tiny/sequences.parquet")
    assert f"| {users.height} " in text
    assert f"{users['items'].list.len().sum():,}" in text
    assert text.count("1,234") == 2
    assert "Encoder random, dim 16, 2 seeds." in text
    assert "learning rate 0.001" in text
    assert text.startswith("# Which adapter?\n\nNo conclusion: ")
    assert "`-S 'grid.ablations.datasets=[tiny]'` lists them" in text
    assert "## Table 3" not in text
    assert "2.00 ± 0.00" in text, "Table 6"
    assert "0123456789ab" in report_html(made[0], Path("figures"))


# ---------------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.usefixtures("project")
def test_the_same_cells_give_the_same_figures_byte_for_byte() -> None:
    drawn = []
    for name in "ab":
        directory = Path(name)
        directory.mkdir()
        Figures(directory, ["base", "alphafuse", "spectran"]).comparison(summary(OFFICE), "HR@20")
        drawn.append({file.name: file.read_bytes() for file in directory.rglob("*.*")})
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {"comparison.svg", "comparison.png"}
    assert b"SpecTran" in drawn[0]["comparison.svg"], "words are words, not outlines"
    assert drawn[0]["comparison.png"].startswith(b"\x89PNG")


def test_more_adapters_than_colours_and_one_panel_alone_do_no_harm(tmp_path: Path) -> None:
    values = {("a", "sasrec", f"adapter{i}"): [0.1 + i] for i in range(23)}
    Figures(tmp_path, [adapter for _, _, adapter in values]).comparison(summary(values), "HR@20")
    assert "Adapter22" in (tmp_path / "comparison.svg").read_text()
