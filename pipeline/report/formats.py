"""Tables as data structures, and their Markdown, LaTeX and CSV."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl


@dataclass(frozen=True)
class Entry:
    """The content of a table cell: text, the number to sort by, standard deviation, and mark ("best", "second" or "")."""

    text: str
    value: float | None = None
    spread: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Block:
    """One grid of rows under a heading. Footer rows stay at the bottom when the reader sorts the rows.

    sorted_by: the column by which the rows are sorted, the highest first; None if they have another order. pair: the dataset and
    backbone of a block with a row of means per adapter; None for another block.
    """

    heading: str
    header: list[str]
    rows: list[list[Entry]]
    footer: list[list[Entry]] = field(default_factory=list)
    sorted_by: int | None = None
    pair: tuple[str, str] | None = None


@dataclass(frozen=True)
class Table:
    """A table of the report: its blocks, its notes, and the same numbers at full precision as `data`."""

    name: str
    title: str
    blocks: list[Block]
    notes: list[str]
    data: pl.DataFrame

    def write(self, directory: Path) -> None:
        """Write <name>.md, <name>.tex and <name>.csv."""
        (directory / f"{self.name}.md").write_text(markdown(self), encoding="utf-8")
        (directory / f"{self.name}.tex").write_text(latex(self), encoding="utf-8")
        self.data.write_csv(directory / f"{self.name}.csv")


ABSENT = Entry("–")


def number(value: float | None, form: str = ".4f", std: float | None = None, mark: str = "", unit: str = "") -> Entry:
    """Return a number as an entry; a dash if it is None, NaN or infinite. form: a format specification."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return Entry(format(value, form) + unit, value, "" if std is None else format(std, form.lstrip("+")), mark)


def percent(value: float | None, digits: int = 2) -> Entry:
    """Return a fraction as an entry in per cent with a sign: +12.30 % for 0.123."""
    return ABSENT if value is None else number(100 * value, f"+.{digits}f", unit=" %")


def count(value: float | None, form: str = ",.0f") -> Entry:
    """Return a count as an entry: 1,234."""
    return number(value, form)


def markdown(table: Table) -> str:
    """Return the Markdown of a table: the blocks under their headings, then the notes."""
    parts = []
    for block in table.blocks:
        lines = [
            [markdown_text(name) for name in block.header],
            *([_markdown_entry(entry) for entry in row] for row in (*block.rows, *block.footer)),
        ]
        parts += [f"### {markdown_text(block.heading)}"] * bool(block.heading) + [markdown_lines(lines)]
    return "\n\n".join([*parts, *map(markdown_text, table.notes)]) + "\n"


def markdown_text(text: str) -> str:
    """Return text in which Markdown reads no HTML: each `<` gets a backslash, except in code between backticks."""
    return re.sub(r"`[^`]*`|<", lambda found: r"\<" if found[0] == "<" else found[0], text)


def _markdown_entry(entry: Entry) -> str:
    text = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}[entry.mark].format(markdown_text(entry.text).replace("|", "\\|"))
    return text + (f" ± {entry.spread}" if entry.spread else "")


NUMBER = re.compile(r"(\*\*|<u>)?[+−-]?\d[\d.,]*(?![\dA-Za-z]).*|–|")  # not a checksum that starts with a digit


def markdown_lines(lines: list[list[str]]) -> str:
    """Return a Markdown table with padded columns, readable as plain text too. lines: the header, then the rows.

    Columns of numbers are aligned to the right. The first column names the rows and is aligned to the left.
    """
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    right = [False, *(all(NUMBER.fullmatch(line[i]) for line in lines[1:]) for i in range(1, len(lines[0])))]

    def row(line: list[str]) -> str:
        cells = (cell.rjust(w) if to else cell.ljust(w) for cell, w, to in zip(line, widths, right, strict=True))
        return "| " + " | ".join(cells) + " |"

    rule = "|".join("-" * (width + 1) + (":" if to else "-") for width, to in zip(widths, right, strict=True))
    return "\n".join([row(lines[0]), f"|{rule}|", *map(row, lines[1:])])


def plain_lines(lines: list[list[str]]) -> str:
    """Return a table for a terminal: no markup, the first column aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for name, *values in lines:
        cells = [name.ljust(widths[0]), *(value.rjust(width) for value, width in zip(values, widths[1:], strict=True))]
        text.append("  ".join(cells))
    return "\n".join(text)


LATEX = {"–": "--", "φ": r"$\varphi$", "Σ": r"$\Sigma$", "ᵀ": r"$^\top$", "±": r"$\pm$", "\\": r"\textbackslash{}"}
LATEX |= {character: f"\\{character}" for character in "_&#%${}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def latex_text(text: str) -> str:
    """Return text with LaTeX's special characters escaped; a dataset may be called `my_shop`."""
    return re.sub("[" + re.escape("".join(LATEX)) + "]", lambda found: LATEX[found[0]], text)


def _latex_entry(entry: Entry) -> str:
    text = latex_text(entry.text).replace(r" \%", r"\,\%")
    text = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", "": text}[entry.mark]
    return text + (rf" {{\scriptsize $\pm$ {entry.spread}}}" if entry.spread else "")


def latex(table: Table) -> str:
    """Return the LaTeX of a table for the package booktabs: one tabular for consecutive blocks with the same header."""
    parts: list[str] = []
    header: list[str] = []
    for block in table.blocks:
        if block.header != header:
            parts += [r"\bottomrule", r"\end{tabular}", ""] * bool(header)
            header = block.header
            parts += [rf"\begin{{tabular}}{{l{'c' * (len(header) - 1)}}}", r"\toprule"]
        else:
            parts.append(r"\midrule")
        if block.heading:
            parts.append(rf"\multicolumn{{{len(header)}}}{{l}}{{{latex_text(block.heading)}}} \\")
        parts.append(" & ".join(latex_text(name) for name in header) + r" \\")
        for rows in filter(None, (block.rows, block.footer)):
            parts += [r"\midrule", *(" & ".join(_latex_entry(entry) for entry in row) + r" \\" for row in rows)]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}"]) + "\n"
