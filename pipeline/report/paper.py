"""The tables of the paper, as data."""

from pathlib import Path

import polars as pl

from pipeline.grid.cells import KEYS

PAPER = Path(__file__).parents[2] / "metrics/paper"


def paper_table(name: str = "table2") -> pl.DataFrame:
    """Return a table of the paper, which uses LLaMA3-8B embeddings. Table 4, like Figure 1, is for SASRec."""
    table = pl.read_csv(PAPER / f"{name}.csv", glob=False)
    return table.with_columns(backbone=pl.lit("sasrec")) if name == "table4" else table


def paper_values(name: str, keys: list[str] = KEYS) -> pl.DataFrame:
    """Return a table of the paper in long form: `keys`, `metric`, and the value as `paper`."""
    return paper_table(name).unpivot(index=keys, variable_name="metric", value_name="paper")
