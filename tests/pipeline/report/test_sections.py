"""The report's sections: HTML that is complete and needs no network, and Markdown."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.artifacts import atomic_directory, write_json
from pipeline.params import load_params
from pipeline.report import formats, results, table_data, tables
from pipeline.report.canvas import COLOURS
from pipeline.report.figures import Figures
from pipeline.report.html import report_html
from pipeline.report.sections import Figure, Folded, Section, report_markdown, sections
from tests.pipeline.report.values import NAMES, report_rows

NOTHING = pl.DataFrame()
NO_RUNS = pl.DataFrame(schema={"adapter": pl.String, "why": pl.String})


@pytest.fixture
def report(project: Path) -> tuple[list[Section], dict[str, formats.Table]]:
    """The sections and tables of a report of two adapters on the tiny dataset, with figures in `figures`."""
    return tiny_report()


def tiny_report() -> tuple[list[Section], dict[str, formats.Table]]:
    """The same, in the current directory, which holds the tiny project."""
    values = {("tiny", "sasrec", adapter): [0.1, 0.2] for adapter in ("base", "spectran")}
    found = report_rows(values)
    for run_directory in found["run_directory"]:
        directory = Path(run_directory)
        directory.mkdir(parents=True)
        (directory / "config.json").write_text('{"fingerprint": "0123456789abcdef"}')
        (directory / "analysis.json").write_text(json.dumps({"learned": {"principal_weight": 2.0, "subordinate_weight": 3.0}}))
        (directory / "history.csv").write_text("epoch,NDCG@20\n1,0.1\n2,0.2\n")
    params = load_params()
    summed = results.summarise(found, NAMES)
    cost = table_data.cost(found)
    result_sets = [results.ResultSet(None, summed, NOTHING, NOTHING, NO_RUNS)]
    shown = tables.all_tables(params, found, [], result_sets, cost)
    Path("figures").mkdir()
    figures = Figures(Path("figures"), "spectran")
    figures.comparison(summed, "NDCG@20", pl.DataFrame(schema={"dataset": pl.String}), NO_RUNS)
    figures.learning_curves(found)
    figures.cost(cost, summed, "NDCG@20")
    return sections(
        params,
        found,
        result_sets,
        shown,
        dict.fromkeys(("comparison", "learning-curves", "cost"), "SpecTran and Base are level."),
        [],
        ["every adapter is above chance"],
        ["More seeds."],
    ), shown


class Page(HTMLParser):
    """Parses a page: open tags, ids, addresses and tables."""

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


def test_the_page_is_whole_and_needs_no_network(report: tuple[list[Section], dict[str, formats.Table]]) -> None:
    text = report_html(report[0], Path("figures"))
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)), "inlined figures do not share names"
    assert all(address.startswith("#") or address == "data:," for address in page.addresses), page.addresses
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert text.count("<svg") == 3
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not [light for light, _ in COLOURS.values() if light in drawings], "colours follow light and dark"
    assert drawings.count('aria-label="SpecTran and Base are level."') == 3, "the alternative text is what a figure shows"
    assert "<title>SpecTran: 0.1500 ± 0.0707</title>" in drawings, "values to hover over"
    assert text.index("<h1>Which adapter?</h1>") < text.index("<nav"), "the conclusion comes first"


def test_the_pages_tables_are_those_of_the_csv(report: tuple[list[Section], dict[str, formats.Table]]) -> None:
    text = report_html(report[0], Path("figures"))
    page = Page(text)
    table = next(table for table in page.tables if table[0][:2] == ["Adapter", "NDCG@20"])
    shown = {(row[0], name): cell for row in table[1:] for name, cell in zip(table[0][1:], row[1:], strict=True)}
    data = report[1]["table2"].data
    assert data.height == 8
    for row in data.iter_rows(named=True):
        assert shown[tables.title(row["adapter"]), row["metric"]] == f"{row['mean']:.4f} ± {row['std']:.4f}"
    headings = re.findall(r"<thead>.*?</thead>", text)
    assert len(headings) == len(page.tables)
    assert all(heading.count("<th ") == heading.count("<button") for heading in headings), "every column sorts, by keyboard too"


def test_a_datasets_name_is_text_not_markup(report: tuple[list[Section], dict[str, formats.Table]]) -> None:
    page_sections = [Section("<script>", ["a `b` & <c>"])]
    text = report_html(page_sections, Path("figures"))
    assert "<h1>&lt;script&gt;</h1>" in text
    assert "a <code>b</code> &amp; &lt;c&gt;" in text


def test_no_name_is_markup_in_either_report(project: Path) -> None:
    """A name is escaped in headings, sentences, lists, table headers, cells, notes, captions and summaries."""
    name = '<img src="x" onerror="y">'
    entry = formats.Entry(name)
    block = formats.Block(name, [name, name], [[entry, formats.Entry(name, mark="second")]], [[entry, entry]])
    table = formats.Table("data", name, [block], [name, f"`{name}` {name}"], NOTHING)
    Path("figures").mkdir()
    Path("figures/x.svg").write_text('<svg viewBox="0 0 10 10"><path/></svg>')
    page_sections = [Section(name, [name, [name, name], table, Figure("x", name), Folded(name, table)])]
    page = Page(report_html(page_sections, Path("figures")))
    assert page.open == []
    assert "x" not in page.addresses
    assert [[*row] for row in page.tables[0]] == [[name, name]] * 3
    text = report_markdown(page_sections)
    code = re.findall(r"`[^`]*`", text)
    assert code == [f"`{name}`"], "what is code stays as it is"
    tags = set(re.findall(r"(?<!\\)<\w+", text.replace(code[0], "")))
    assert tags == {"<u"}, "the second best is underlined; nothing else is HTML"


def test_the_report_holds_data_costs_settings_and_what_was_not_asked_for(
    report: tuple[list[Section], dict[str, formats.Table]],
) -> None:
    text = report_markdown(report[0])
    users = pl.read_parquet("data/sequences/tiny/sequences.parquet")
    assert f" {users.height} | " in text
    assert f"{users['items'].list.len().sum():,}" in text
    assert text.count("1,234") == 2
    assert "Encoder random, dim 16, 2 seeds." in text
    assert "learning rate 0.001" in text
    assert text.startswith("# Which adapter?\n\n*Data: Tiny, ")
    assert "Encoder: random · Dim: 16 · Runs: 2 seeds of 2 adapters*\n\nNo conclusion: " in text
    assert "`-S 'grid.ablations.datasets=[tiny]'` adds them" in text
    assert "## Table 3" not in text
    assert "2.00 ± 0.00" in text, "Table 6"
    assert "0123456789ab" in report_html(report[0], Path("figures"))


@pytest.mark.parametrize("ties", ["item", "shuffled"])
def test_an_order_of_ties_that_can_be_learned_is_said_with_the_verdict(project: Path, ties: str) -> None:
    directory = Path("data/sequences/tiny")
    statistics = json.loads((directory / "statistics.json").read_text()) | {
        "tied": {"steps": 0.2, "validation": 0.3, "test": 0.4}
    }
    tables = {name: (directory / name).read_bytes() for name in ("sequences.parquet", "items.parquet")}
    with atomic_directory(directory, {"preprocess": {"ties": ties}}) as partial:
        write_json(partial / "statistics.json", statistics)
        for name, content in tables.items():
            (partial / name).write_bytes(content)
    verdict, _, rest = report_markdown(tiny_report()[0]).partition("## Table 1")
    assert ("a model that knows IDs can learn it" in verdict) == (ties == "item")
    assert "40.0 % of the test items" in rest
