"""The grid's tables of figures as CSV files: cells, baselines, published results and figures of held-out items."""

from pathlib import Path

import polars as pl

# The columns of names and other texts, which may look like numbers: a dataset "2014", an encoder "768", a commit of digits alone.
TEXTS = (
    *("dataset", "backbone", "adapter", "encoder", "variant", "loss", "similarity", "split", "device"),
    *("over", "fingerprint", "commit", "torch"),  # of runs.csv
    *("method", "setting", "ids"),  # of baselines and held-out items
    *("among", "metric", "leader", "other", "by", "group"),  # of comparisons.csv and groups.csv
)


def read_csv_table(file: Path) -> pl.DataFrame:
    """Return a table of figures. Columns of names are text, whatever their names look like; an empty field is null.

    The caller checks the file first. Raises polars.exceptions.PolarsError if it is not CSV.
    """
    return pl.read_csv(file, glob=False, schema_overrides=dict.fromkeys(TEXTS, pl.String))
