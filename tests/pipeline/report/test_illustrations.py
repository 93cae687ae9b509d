"""All figures of a report, each with what it shows."""

import re
from pathlib import Path


def test_every_figure_that_is_drawn_stands_in_the_report_with_what_it_shows(reported: Path) -> None:
    drawn = {file.stem for file in (reported / "metrics/figures").glob("*.svg")}
    assert {"forest", "comparison", "learning-curves", "figure1", "cost", "popularity", "history", "attention"} == drawn
    shown = dict(re.findall(r"!\[(.+)\]\(figures/(.+)\.svg\)", (reported / "metrics/report.md").read_text()))
    assert set(shown.values()) == drawn
    assert all(finding.endswith(".") and re.search(r"\d", finding) for finding in shown), "a finding has figures"
