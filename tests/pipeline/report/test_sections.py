"""The report's sections: HTML that is complete and needs no network, and Markdown."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import atomic_directory, write_json
from pipeline.report import formats
from pipeline.report.html import report_html
from pipeline.report.sections import Section, report_markdown
from tests.pipeline.report.conftest import tiny_report

NOTHING = pl.DataFrame()
NO_RUNS = pl.DataFrame(schema={"adapter": pl.String, "why": pl.String})


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
