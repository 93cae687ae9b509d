"""The report as one HTML file: figures are embedded, tables can be sorted by keyboard, and no network is needed."""

import re
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.report.canvas import variables
from pipeline.report.formats import ABSENT, Block, Entry, Table
from pipeline.report.sections import Figure, Folded, Section

TEMPLATE = Path(__file__).parent / "report.html"


def report_html(sections: list[Section], figures: Path) -> str:
    """Return the HTML page of the report. figures: the directory with the SVG files."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def drawing(figure: Figure) -> Markup:
        return _drawing(figures / f"{figure.name}.svg", figure)

    environment.filters |= {"anchor": _anchor, "words": _words, "drawing": drawing, "headline_first": _headline_first}
    environment.tests |= {
        "word": _is_word,
        "figure": lambda part: isinstance(part, Figure),
        "folded": lambda part: isinstance(part, Folded),
        "table": lambda part: isinstance(part, Table),
    }
    return environment.get_template(TEMPLATE.name).render(sections=sections, light=variables(0), dark=variables(1))


def _anchor(heading: str) -> str:
    """Return the identifier of a heading: "table-1-datasets" for "Table 1: datasets"."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _words(text: str) -> Markup:
    """Return escaped text in which the parts between backticks are marked as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _is_word(entry: Entry) -> bool:
    """Return whether an entry is a word, which is aligned left; numbers and dashes are aligned right."""
    return entry.value is None and entry not in (ABSENT, Entry(""))


def _headline_first(block: Block) -> Block:
    """Return a block whose metrics at the largest cutoff come first, so that a phone shows them without scrolling.

    A metric keeps the columns that follow it, such as the paper's value.
    """
    groups: list[list[int]] = []
    for i, name in enumerate(block.header[1:], start=1):
        if re.fullmatch(r"(NDCG|HR)@\d+", name):
            groups.append([i])
        elif groups:
            groups[-1].append(i)
        else:
            return block  # the columns are not of metrics
    groups.sort(key=lambda group: -int(block.header[group[0]].partition("@")[2]))
    order = [0, *(i for group in groups for i in group)]
    rows, footer = ([[line[i] for i in order] for line in lines] for lines in (block.rows, block.footer))
    place = None if block.sorted_by is None else order.index(block.sorted_by)
    return replace(block, header=[block.header[i] for i in order], rows=rows, footer=footer, sorted_by=place)


def _drawing(file: Path, figure: Figure) -> Markup:
    """Return a figure's SVG for the page, which sets its colours, with identifiers prefixed by the figure's name.

    Without the prefix, identifiers of several figures on one page would be the same. Raises ValueError if the file has no
    viewBox.
    """
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{figure.name}-", text)
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', text)
    if box is None:
        raise ValueError(f"{file} has no viewBox")
    width, label = float(box[1]), escape(figure.finding)
    style = f"min-width: {0.92 * width:.0f}px; max-width: {1.7 * width:.0f}px"
    drawing = text[text.index(">", text.index("<svg")) + 1 :]
    return Markup(f'<svg {box[0]} role="img" aria-label="{label}" style="{style}">{drawing}')
