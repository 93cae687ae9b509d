"""The report: words that follow from the numbers, HTML that is whole and needs no network, figures that can be read."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.params import load_params
from pipeline.report import formats, results, tables
from pipeline.report.figures import GROUND, INK, Figures
from pipeline.report.html import report_html
from pipeline.report.sections import (
    Section,
    best_at_first,
    conclusions,
    headline_metric,
    report_markdown,
    sections,
    verdict,
    with_a_stronger_loss,
)
from tests.pipeline.report.values import BOTH, OFFICE

NAMES = results.table_metrics([10, 20])
NOTHING = pl.DataFrame()
Cell = tuple[str, str, str]


def rows(values: dict[Cell, list[float]]) -> pl.DataFrame:
    """A row per seed; every metric is the value given."""
    return pl.DataFrame(
        [
            dict(zip(("dataset", "backbone", "adapter"), cell, strict=True))
            | {"encoder": "random", "dim": 16, "seed": seed, **dict.fromkeys(NAMES, value), "trainable_parameters": 1234}
            | {"epochs": 5, "best_epoch": 4, "training_seconds": 2.5, "seconds_per_epoch": 0.5, "inference_seconds": 0.1}
            | {"device": "x86_64", "threads": 1, "over": "seeds", "run_directory": f"grid/cells/{'-'.join(cell)}/seed-{seed}"}
            for cell, seeds in values.items()
            for seed, value in enumerate(seeds)
        ]
    )


def summary(values: dict[Cell, list[float]]) -> pl.DataFrame:
    return results.summarise(rows(values), NAMES)


def compared(values: dict[Cell, list[float]], p: float) -> pl.DataFrame:
    """Comparisons as the test would return them, all with the p-value given."""
    means = {cell: sum(seeds) / len(seeds) for cell, seeds in values.items()}
    return pl.DataFrame(
        [
            {"dataset": d, "backbone": b, "metric": metric, "other": a, "difference": means[d, b, "spectran"] - mean, "p_holm": p}
            for (d, b, a), mean in means.items()
            if a != "spectran"
            for metric in ("NDCG@20", "HR@20")
        ]
    )


# ------------------------------------------------------------------------------------------------------------------------ words


def test_a_gap_within_the_spread_has_no_winner() -> None:
    (text,) = conclusions(summary(OFFICE), NOTHING)
    assert "Office, SASRec: SpecTran has the best NDCG@20, 0.3300, 10.0 % above AlphaFuse" in text
    assert "within the spread over seeds (0.0424): no winner" in text


def test_a_gap_beyond_the_spread_is_given_in_deviations() -> None:
    values = OFFICE | {("office", "sasrec", "spectran"): [0.61, 0.59]}
    (text,) = conclusions(summary(values), NOTHING)
    assert "no winner" not in text
    assert "100.0 % above AlphaFuse, a gap of 21.2 standard deviations over seeds." in text


def test_one_seed_is_said_to_prove_little() -> None:
    (text,) = conclusions(summary({cell: seeds[:1] for cell, seeds in OFFICE.items()}), NOTHING)
    assert "(one seed: no spread is known)" in text


def test_where_spectran_loses_it_is_said() -> None:
    assert "SpecTran is beaten by another adapter in at least one metric on Demo/SASRec." in conclusions(summary(BOTH), NOTHING)
    assert len(conclusions(summary(OFFICE), NOTHING)) == 1


def test_spectran_is_not_called_beaten_where_it_was_not_run() -> None:
    values = OFFICE | {("demo", "sasrec", "base"): [0.5, 0.5]}
    assert "beaten" not in "".join(conclusions(summary(values), NOTHING))


def test_an_adapter_alone_is_compared_with_nothing() -> None:
    alone = summary({("office", "sasrec", "base"): [0.1, 0.2]})
    assert conclusions(alone, NOTHING) == ["Office, SASRec: Base (ID only) has an NDCG@20 of 0.1500."]
    assert verdict(alone, NOTHING) == "Only Base (ID only) was run: there is nothing to compare it with."
    others = summary({cell: seeds for cell, seeds in BOTH.items() if cell[2] != "spectran"})
    assert (
        verdict(others, NOTHING)
        == "The best NDCG@20 of 2 pairs of dataset and backbone has: AlphaFuse in 1, Base (ID only) in 1."
    )


def test_the_verdict_counts_wins_and_averages_gains() -> None:
    text = verdict(summary(BOTH), NOTHING)
    assert text.startswith("SpecTran has the best NDCG@20 in 1 of 2 pairs of dataset and backbone")
    assert "-5.00 % on average" in text
    assert "chance" not in text, "nothing was tested"


@pytest.mark.parametrize(
    ("p", "says"), [(0.01, "favour in 1, against it in 1; in 0 it"), (0.2, "favour in 0, against it in 0; in 2 it")]
)
def test_the_verdict_tells_chance_from_difference(p: float, says: str) -> None:
    assert says in verdict(summary(BOTH), compared(BOTH, p))
    first, second = conclusions(summary(BOTH), compared(BOTH, p))[:2]
    assert f"over users p = {p:.4f} (Holm)" in first
    assert ("may be chance" in first) == (p > 0.05)
    assert "Base (ID only) has the best" in second
    assert "over users" not in second.replace(f"; over users p = {p:.4f} (Holm)", ""), "SpecTran is one of the two leaders"


def test_the_headline_is_ndcg_at_the_largest_cutoff_in_whatever_order_they_are() -> None:
    assert headline_metric(pl.DataFrame({"metric": ["NDCG@100", "NDCG@20", "HR@200"]})) == "NDCG@100"


def test_runs_that_patience_ended_at_the_start_are_unique_items() -> None:
    found = rows(OFFICE).with_columns(variant=pl.lit("full"), loss=pl.lit("info_nce"))
    assert best_at_first(found) == ""
    first = (pl.col("adapter") == "alphafuse") & (pl.col("seed") == 1)
    found = found.with_columns(best_epoch=pl.when(first).then(1).otherwise("best_epoch"))
    assert best_at_first(found).startswith(
        f"Of {found.height} runs 1 ended without a better validation than the first epoch's: Office, SASRec, AlphaFuse, "
        "dim 16 (seed 1). `train.patience` may"
    )
    every = found.with_columns(best_epoch=1)
    assert "AlphaFuse, dim 16 (seeds 0, 1); " in best_at_first(every)
    assert best_at_first(every.with_columns(epochs=1)) == "", "one epoch was asked for"


def test_the_stronger_loss_is_told_of_what_both_losses_have() -> None:
    """Cells may be missing under either."""
    sampled = results.ResultSet("info_nce", summary(OFFICE), NOTHING)
    strong = {
        ("office", "sasrec", "base"): [0.20],
        ("office", "sasrec", "spectran"): [0.25],
        ("office", "sasrec", "morec"): [0.21],
    }
    full = results.ResultSet("cross_entropy", summary(strong), NOTHING)
    text = with_a_stronger_loss([sampled, full])
    assert "tuned Base goes from an NDCG@20 of 0.1500 to 0.2000 (average over 1 pair)" in text
    assert "gain over it is +120.0 % with negatives, +25.0 % with the whole catalogue." in text
    assert "other adapters" not in text, "neither of the others was run under both"
    assert with_a_stronger_loss([sampled]) == ""
    only = {cell: values for cell, values in strong.items() if cell[2] != "spectran"}
    assert with_a_stronger_loss([sampled, results.ResultSet("cross_entropy", summary(only), NOTHING)]) == ""


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
    result_sets = [results.ResultSet(None, summed, NOTHING)]
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
    assert text.startswith("# Which adapter?\n\nSpecTran does not have the best NDCG@20; over the best other")
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
