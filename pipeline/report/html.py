"""The report as one HTML file that needs no network: figures inside, light and dark, tables that sort by keyboard."""

import re
from html import escape
from pathlib import Path
from string import Template

from pipeline.report.figures import GROUND, INK
from pipeline.report.formats import ABSENT, Block, Entry, Table
from pipeline.report.sections import Figure, Folded, Part, Section

PAGE = Path(__file__).parent / "report.html"


def report_html(sections: list[Section], figures: Path) -> str:
    """The whole page. `figures` is the directory of the SVG files."""
    body = []
    for number, section in enumerate(sections):
        level = "h2" if number else "h1"
        parts = "\n".join(_part(part, figures) for part in section.parts)
        body.append(f'<section id="{_anchor(section)}"><{level}>{escape(section.heading)}</{level}>\n{parts}\n</section>')
    links = "\n".join(f'<a href="#{_anchor(section)}">{escape(section.heading)}</a>' for section in sections[1:])
    page = Template(PAGE.read_text(encoding="utf-8"))
    return page.substitute(title=escape(sections[0].heading), opening=body[0], links=links, body="\n".join(body[1:]))


def _anchor(section: Section) -> str:
    return re.sub(r"[^a-z0-9]+", "-", section.heading.lower()).strip("-")


def _part(part: Part, figures: Path) -> str:
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>"
    if isinstance(part, list):
        return "<ul>" + "".join(f"<li>{_text(sentence)}</li>" for sentence in part) + "</ul>"
    if isinstance(part, Figure):
        return f"<figure>{_svg(figures / f'{part.name}.svg', part)}<figcaption>{_text(part.caption)}</figcaption></figure>"
    if isinstance(part, Folded):
        return f"<details><summary>{escape(part.summary)}</summary>{_table(part.table)}</details>"
    return _table(part)


def _text(text: str) -> str:
    """Words; what stands between backticks is code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _table(table: Table) -> str:
    blocks = "\n".join(_block(block, table.title) for block in table.blocks)
    return blocks + "".join(f'<p class="note">{_text(note)}</p>' for note in table.notes)


def _block(block: Block, title: str) -> str:
    head = "".join(
        f'<th scope="col"{_word(entry)}><button type="button">{escape(name)}<span aria-hidden="true"></span></button></th>'
        for name, entry in zip(block.header, block.rows[0], strict=True)
    )
    rows = "".join(f"<tr>{_cells(row)}</tr>" for row in block.rows)
    foot = "".join(f"<tr>{_cells(row)}</tr>" for row in block.footer)
    label = escape(block.heading or title)
    heading = f"<h3>{label}</h3>" if block.heading else ""
    return (
        f'{heading}<div class="wide" role="region" tabindex="0" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody>{f'<tfoot>{foot}</tfoot>' if foot else ''}</table></div>"
    )


def _cells(row: list[Entry]) -> str:
    first, *rest = row
    return f'<th scope="row">{escape(first.text)}</th>' + "".join(_cell(entry) for entry in rest)


def _cell(entry: Entry) -> str:
    text = escape(entry.text)
    text = {"best": f"<b>{text}</b>", "second": f"<u>{text}</u>", "": text}[entry.mark]
    spread = f" <small>± {escape(entry.spread)}</small>" if entry.spread else ""
    value = _word(entry) if entry.value is None else f' data-value="{entry.value!r}"'
    return f"<td{value}>{text}{spread}</td>"


def _word(entry: Entry) -> str:
    """Words stand on the left, numbers and dashes on the right."""
    return "" if entry.value is not None or entry in (ABSENT, Entry("")) else ' class="word"'


def _svg(file: Path, figure: Figure) -> str:
    """A figure of matplotlib's to stand in the page: its colours the page's, its names its own."""
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
    svg = f'<svg {box[0]} role="img" aria-label="{label}" style="{style}">{drawing}'
    return f'<div class="wide" role="region" tabindex="0" aria-label="{label}">{svg}</div>'
