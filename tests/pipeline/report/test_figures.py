"""Figures: the same bytes for the same numbers."""

from pathlib import Path

import pytest

from pipeline.report.figures import Figures
from tests.pipeline.report.values import OFFICE, summary


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
