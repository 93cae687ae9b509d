"""The report as one HTML file: figures are embedded, tables can be sorted by keyboard, and no network is needed."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.report.figures import GROUND, INK
from pipeline.report.formats import ABSENT, Entry, Table
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

    environment.filters |= {"anchor": _anchor, "words": _words, "drawing": drawing}
    environment.tests |= {
        "word": _is_word,
        "figure": lambda part: isinstance(part, Figure),
        "folded": lambda part: isinstance(part, Folded),
        "table": lambda part: isinstance(part, Table),
    }
    return environment.get_template(TEMPLATE.name).render(sections=sections)


def _anchor(heading: str) -> str:
    """Return the identifier of a heading: "table-1-datasets" for "Table 1: datasets"."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _words(text: str) -> Markup:
    """Return escaped text in which the parts between backticks are marked as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _is_word(entry: Entry) -> bool:
    """Return whether an entry is a word, which is aligned left; numbers and dashes are aligned right."""
    return entry.value is None and entry not in (ABSENT, Entry(""))


def _drawing(file: Path, figure: Figure) -> Markup:
    """Return matplotlib's SVG for the page: with the page's colours, and identifiers prefixed by the figure's name.

    Without the prefix, identifiers of several figures on one page would be the same. Raises ValueError if the file has no
    viewBox.
    """
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace(INK, "currentColor").replace(GROUND, "none")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{figure.name}-", text)
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', text)
    if box is None:
        raise ValueError(f"{file} has no viewBox")
    width, label = float(box[1]), escape(figure.caption)
    style = f"min-width: {0.85 * width:.0f}px; max-width: {1.4 * width:.0f}px"
    drawing = text[text.index(">", text.index("<svg")) + 1 :]
    return Markup(f'<svg {box[0]} role="img" aria-label="{label}" style="{style}">{drawing}')
