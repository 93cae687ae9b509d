"""Tables as Markdown, LaTeX and CSV."""

import re
from pathlib import Path

import polars as pl

from pipeline.report.formats import latex, latex_text, markdown_lines
from pipeline.report.tables import table2
from tests.pipeline.report.values import BOTH, summary


def test_markdown_latex_and_csv_hold_the_same_numbers(tmp_path: Path) -> None:
    table = table2(summary(BOTH))
    table.write(tmp_path)
    data = pl.read_csv(tmp_path / "table2.csv")
    assert data.columns == ["dataset", "backbone", "adapter", "metric", "mean", "std", "seeds", "paper", "difference"]
    for row in data.iter_rows(named=True):
        for file in ("table2.md", "table2.tex"):
            text = (tmp_path / file).read_text()
            assert f"{row['mean']:.4f}" in text
            assert f"{row['std']:.4f}" in text


def test_numbers_are_aligned_to_the_right_and_checksums_to_the_left() -> None:
    numbers = ["0.0688", "**0.0743** ± 0.0012", "+1.9 %", "−1", "1,234", "–", "3 seeds"]
    checksums = ["8e383b99553b", "909f465f95e8", "ebb5968091e3", "12a", "1b", "00ff", "77e0"]
    rows = [["name", *pair] for pair in zip(numbers, checksums, strict=True)]
    rule = markdown_lines([["", "number", "checksum"], *rows]).splitlines()[1]
    assert [cell.endswith(":") for cell in rule.strip("|").split("|")] == [False, True, False]


def test_latex_is_balanced() -> None:
    text = latex(table2(summary(BOTH)))
    assert text.startswith("\\begin{tabular}{lcccc}\n\\toprule")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    for tabular in text.split("\n\n"):
        width = len(re.findall(r"begin.tabular..(l[c]+).", tabular)[0])
        lines = [line for line in tabular.splitlines() if " & " in line]
        assert all(line.count(" & ") == width - 1 and line.endswith(r" \\") for line in lines)
    assert r"\textbf{0.3300} {\scriptsize $\pm$ 0.0424}" in text
    assert r"\underline{0.3000} {\scriptsize $\pm$ 0.0000}" in text
    assert r"+10.00\,\%" in text
    assert not re.search(r"(?<!\\)%", text), "a bare per cent sign would hide the rest of the line"


def test_latex_survives_the_names_that_users_give_their_datasets() -> None:
    values = {("my_shop & co #1", "sasrec", "base"): [0.1], ("my_shop & co #1", "sasrec", "spectran"): [0.2]}
    heading = next(line for line in latex(table2(summary(values))).splitlines() if "multicolumn" in line)
    assert r"My\_shop \& co \#1, SASRec" in heading


def test_what_latex_takes_for_commands_is_printed() -> None:
    assert latex_text("a_b & 5 % of $3 {x} ^ ~ \\") == (
        r"a\_b \& 5 \% of \$3 \{x\} \textasciicircum{} \textasciitilde{} \textbackslash{}"
    )
