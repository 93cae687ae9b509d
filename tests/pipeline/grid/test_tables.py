"""Tables of figures as CSV files: names stay what they are, figures are numbers."""

from pathlib import Path

import polars as pl
import pytest

from pipeline.grid.tables import TEXTS, read_csv_table

ROOT = Path(__file__).parents[3]


def test_names_that_look_like_numbers_are_text_and_figures_are_not(tmp_path: Path) -> None:
    names = {name: ["2014", "007", "1e3", "true", "2026-01-31"] for name in TEXTS}
    figures = {
        "dim": [8, 16, 24, 32, 40],
        "NDCG@20": [0.125, 0.25, 0.5, 0.75, 1.0],
        "exclude_history": [True, False] * 2 + [True],
    }
    written = pl.DataFrame(names | figures)
    written.write_csv(tmp_path / "table.csv")
    assert read_csv_table(tmp_path / "table.csv").equals(written, null_equal=False)


@pytest.mark.parametrize("variants", [[None, None], [None, "full"], ["", None]])
def test_a_variant_that_is_missing_stays_null(tmp_path: Path, variants: list[str | None]) -> None:
    written = pl.DataFrame({"dataset": ["2014", "7"], "variant": pl.Series(variants, dtype=pl.String), "seed": [0, 1]})
    written.write_csv(tmp_path / "table.csv")
    read = read_csv_table(tmp_path / "table.csv")
    assert read.schema == written.schema
    assert read.rows() == written.rows()


def test_published_tables_are_read_as_before() -> None:
    """Their names are words, which Polars takes for text anyway, except for a commit that has digits alone."""
    files = sorted(ROOT.glob("docs/results/*/*.csv"))
    assert len(files) > 20
    for file in files:
        before = pl.read_csv(file, glob=False).with_columns(pl.col("^commit$").cast(pl.String))
        assert read_csv_table(file).equals(before), file
