"""The report as HTML: complete, without network, and without markup from names."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.report import formats
from pipeline.report.canvas import COLOURS
from pipeline.report.html import report_html
from pipeline.report.sections import Figure, Folded, Section, report_markdown
from pipeline.report.titles import title

NOTHING = pl.DataFrame()


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
        assert shown[title(row["adapter"]), row["metric"]] == f"{row['mean']:.4f} ± {row['std']:.4f}"
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
