"""A user's own files, written and read back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.data.sources import Raw, files
from pipeline.data.sources.files import Files

START = 1_500_000_000  # s, in 2017


Load = Callable[..., Raw]


def write(table: pl.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path)
    return path


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Bring a log and a catalogue in and read them back: contents, or data frames to be written as CSV."""
    monkeypatch.chdir(tmp_path)

    def loaded(log: Any, items: Any, names: tuple[str, str] = ("log.csv", "items.csv"), **options: Any) -> Raw:
        for name, content in zip(names, (log, items), strict=True):
            if isinstance(content, pl.DataFrame):
                write(content, tmp_path / name)
            elif content is not None:
                (tmp_path / name).write_bytes(content)
        source = Files.parse({"kind": "files", "interactions": names[0], "items": names[1], **options}, "sources.mine")
        (tmp_path / "raw").mkdir(exist_ok=True)
        files.fetch(source, None, tmp_path / "raw")
        return files.read(source, tmp_path / "raw")

    return loaded


def items_of(*names: str) -> pl.DataFrame:
    return pl.DataFrame({"item_id": list(names), "title": [f"Title {name}" for name in names]})


def dense(items: list[str], users: int = 4) -> pl.DataFrame:
    rows = [(f"u{u}", item, START + place) for u in range(users) for place, item in enumerate(items)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
