"""Cells with a value per seed, and their rows, for tests of tables and of the report."""

import re

import polars as pl

from pipeline.report.results import summarise, table_metrics

NAMES = table_metrics([10, 20])
Cell = tuple[str, str, str]

OFFICE = {
    ("office", "sasrec", "base"): [0.10, 0.20],
    ("office", "sasrec", "alphafuse"): [0.30, 0.30],
    ("office", "sasrec", "spectran"): [0.36, 0.30],
}
BOTH = OFFICE | {
    ("demo", "sasrec", "base"): [0.50, 0.50],
    ("demo", "sasrec", "alphafuse"): [0.20, 0.20],
    ("demo", "sasrec", "spectran"): [0.40, 0.40],
}


def rows(values: dict[Cell, list[float]]) -> pl.DataFrame:
    """Return a row per seed; every metric has the given value, except NDCG@10, which has half of it."""
    return pl.DataFrame(
        [
            dict(zip(("dataset", "backbone", "adapter"), cell, strict=True))
            | {"seed": seed, **dict.fromkeys(NAMES, value), "NDCG@10": value / 2}
            | {"encoder": "minilm", "dim": 16, "trainable_parameters": 1234, "epochs": 5, "best_epoch": 4}
            for cell, seeds in values.items()
            for seed, value in enumerate(seeds)
        ]
    )


def parsed(markdown: str) -> list[dict[str, str]]:
    """Return the rows of all tables in a Markdown text as {column: cell}."""
    tables = re.findall(r"(?m)(?:^\|.*\|$\n?)+", markdown)
    found = []
    for table in tables:
        header, rule, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
        assert all(re.fullmatch("-+:?", cell) for cell in rule)
        assert len({len(line) for line in (header, rule, *body)}) == 1, "every row has as many cells as the header"
        found += [dict(zip(header, line, strict=True)) for line in body]
    return found


def report_rows(values: dict[Cell, list[float]]) -> pl.DataFrame:
    """Return a row per seed with all columns that the report reads; every metric has the given value."""
    return pl.DataFrame(
        [
            dict(zip(("dataset", "backbone", "adapter"), cell, strict=True))
            | {"encoder": "random", "dim": 16, "seed": seed, **dict.fromkeys(NAMES, value), "trainable_parameters": 1234}
            | {"epochs": 5, "best_epoch": 3, "training_seconds": 2.5, "seconds_per_epoch": 0.5, "inference_seconds": 0.1}
            | {"device": "x86_64", "threads": 1, "over": "seeds", "run_directory": f"grid/cells/{'-'.join(cell)}/seed-{seed}"}
            for cell, seeds in values.items()
            for seed, value in enumerate(seeds)
        ]
    )


def summary(values: dict[Cell, list[float]]) -> pl.DataFrame:
    return summarise(rows(values), NAMES)


NOTHING = pl.DataFrame()
NO_RUNS = pl.DataFrame(
    schema={**dict.fromkeys(("dataset", "backbone", "adapter", "over", "why"), pl.String), "dim": pl.Int64}
)  # that support no conclusion
GAINS = pl.DataFrame(
    {
        "dataset": ["a"] * 4,
        "backbone": ["sasrec"] * 4,
        "adapter": ["morec", "spectran", "base", "unisrec"],
        "mean": [0.3, 0.22, 0.2, 0.1],
        "gain": [0.5, 0.1, 0.0, -0.5],
        "low": [0.4, -0.1, 0.0, -0.6],
        "high": [0.6, 0.3, 0.0, -0.4],
        "users": [100] * 4,
        "seeds": [1] * 4,
    }
)
