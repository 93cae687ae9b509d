"""A user's own files, and the built-in dataset."""

import datetime
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from pipeline.data.sources import demo, files, source_module
from pipeline.data.sources.demo import Demo
from pipeline.data.sources.files import Files

INTERACTIONS = {"user_id": ["u1", "u1", "u2"], "item_id": ["i1", "i2", "i1"], "timestamp": [10, 20, 30]}
ITEMS = {"item_id": ["i1", "i2"], "title": ["One, with a comma", "Two"]}


def write(table: pl.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_own_files_are_read_whatever_their_column_order_and_extra_columns(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = pl.DataFrame(INTERACTIONS).with_columns(rating=5).select("rating", "timestamp", "item_id", "user_id")
    write(log, tmp_path / f"log.{suffix}")
    write(pl.DataFrame(ITEMS), tmp_path / f"items.{suffix}")
    source = Files(kind="files", interactions=f"log.{suffix}", items=f"items.{suffix}")
    files.fetch(source, None, tmp_path)
    raw = files.read(source, tmp_path)
    assert raw.interactions.to_dict(as_series=False) == INTERACTIONS
    assert raw.items.to_dict(as_series=False) == ITEMS
    assert raw.interactions.schema == files.INTERACTIONS


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_columns_of_own_items_are_fields_of_the_template(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = pl.DataFrame(ITEMS).with_columns(brand=pl.Series(["Alder", None]), price=pl.Series([1.5, 2.0]))
    if suffix == "parquet":
        table = table.with_columns(tags=pl.Series([["a", "b"], None]), blob=pl.Series([{"x": 1}, {"x": 2}]))
    write(pl.DataFrame(INTERACTIONS), tmp_path / f"log.{suffix}")
    write(table, tmp_path / f"items.{suffix}")
    files.fetch(Files(kind="files", interactions=f"log.{suffix}", items=f"items.{suffix}"), None, tmp_path)
    read = pl.read_parquet(tmp_path / "items.parquet")
    assert read.select("item_id", "title").to_dict(as_series=False) == ITEMS
    assert read.select("brand", "price").rows() == [("Alder", "1.5"), (None, "2.0")]
    assert read.columns == ["item_id", "title", "brand", "price"] + (["tags"] if suffix == "parquet" else [])
    if suffix == "parquet":
        assert read["tags"].to_list() == ["a, b", None]


def test_numeric_ids_become_text_as_they_are_written(tmp_path: Path) -> None:
    path = write(pl.DataFrame({"user_id": [7], "item_id": [12], "timestamp": [10]}), tmp_path / "log.parquet")
    assert files.read_table(path, files.INTERACTIONS).row(0) == ("7", "12", 10)
    path = write(pl.DataFrame({"user_id": ["007"], "item_id": ["012"], "timestamp": [10]}), tmp_path / "log.csv")
    assert files.read_table(path, files.INTERACTIONS).row(0) == ("007", "012", 10)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("renamed", "timestamps", "says"),
    [
        ({"timestamp": "time_stamp"}, [10, 20, 30], "column 'timestamp' is missing; did you mean 'time_stamp'?"),
        ({"user_id": "userid"}, [10, 20, 30], "column 'user_id' is missing; did you mean 'userid'?"),
        ({"item_id": "z"}, [10, 20, 30], "column 'item_id' is missing; valid: timestamp, user_id, z"),
        ({}, ["2013-01-01", "x", "y"], "column 'timestamp' cannot be read as Int64"),
        ({}, [1.5, 2.0, 3.0], "column 'timestamp' cannot be read as Int64"),
    ],
)
def test_a_wrong_column_is_one_line_that_names_file_and_column(
    tmp_path: Path, suffix: str, renamed: dict[str, str], timestamps: list, says: str
) -> None:
    table = pl.DataFrame(INTERACTIONS | {"timestamp": timestamps}).rename(renamed)
    path = write(table, tmp_path / f"log.{suffix}")
    with pytest.raises(UserError) as caught:
        files.read_table(path, files.INTERACTIONS)
    assert str(caught.value) == f"{path}: {says}"


def test_whole_seconds_written_as_decimals_are_seconds(tmp_path: Path) -> None:
    path = write(pl.DataFrame(INTERACTIONS | {"timestamp": [1.0, 2.0, 3.0]}), tmp_path / "log.parquet")
    assert files.read_table(path, files.INTERACTIONS)["timestamp"].to_list() == [1, 2, 3]


@pytest.mark.parametrize("name", ["missing.csv", "broken.parquet", "empty.csv", "folder.csv"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=name) as caught:
        files.read_table(tmp_path / name, files.ITEMS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["amazon2014", "demo", "files"])
def test_every_kind_of_source_has_its_module(kind: str) -> None:
    module = source_module(kind)
    assert callable(module.fetch)
    assert callable(module.read)


def test_the_demo_is_decided_by_its_seed_and_sizes() -> None:
    interactions, items = demo.generate(3, 80, 60)
    again = demo.generate(3, 80, 60)
    assert interactions.equals(again[0])
    assert items.equals(again[1])
    for other in (demo.generate(4, 80, 60), demo.generate(3, 81, 60), demo.generate(3, 80, 61)):
        assert not interactions.equals(other[0])
    assert not items.equals(demo.generate(4, 80, 60)[1])


def test_the_demo_is_written_and_read_back(tmp_path: Path) -> None:
    source = Demo(kind="demo", seed=3, items=80, users=60)
    demo.fetch(source, None, tmp_path)
    raw = demo.read(source, tmp_path)
    expected = demo.generate(3, 80, 60)
    assert raw.interactions.equals(expected[0])
    assert raw.items.equals(expected[1])


def test_the_demo_is_a_plausible_shop() -> None:
    interactions, items = demo.generate(0, 200, 100)
    assert items.height == items["item_id"].n_unique() == 200
    assert items["title"].str.len_chars().min() > 1
    assert items["title"].str.strip_chars().equals(items["title"])
    names = [name for _, name in demo.TYPES]
    assert all(any(name in title for name in names) for title in items["title"]), "a title always names the product"
    assert interactions["user_id"].n_unique() == 100
    assert set(interactions["item_id"]) <= set(items["item_id"])
    per_user = interactions.group_by("user_id").agg(pl.len(), pl.col("item_id").n_unique().alias("distinct"))
    assert per_user["len"].equals(per_user["distinct"].rename("len")), "a shopper buys a product once"
    assert (per_user["len"].min(), per_user["len"].max()) == demo.LENGTHS
    assert (interactions["timestamp"] % demo.DAY == 0).all()


def test_the_demos_shoppers_never_buy_before_what_they_bought_earlier() -> None:
    interactions, _ = demo.generate(0, 200, 100)
    for _, user in interactions.group_by("user_id", maintain_order=True):
        assert user["timestamp"].is_sorted()


def test_a_duration_is_no_field_and_no_time(tmp_path: Path) -> None:
    length = datetime.timedelta(seconds=5)
    pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [length]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"log.parquet: column 'timestamp' is a length of time, not a point in time"):
        files.read_table(tmp_path / "log.parquet", files.INTERACTIONS)
    pl.DataFrame(
        {"item_id": ["i"], "title": ["x"], "lasts": [length], "each": [[length]], "day": [datetime.date(2020, 1, 2)]}
    ).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [5]}).write_parquet(tmp_path / "log.parquet")
    source = Files(kind="files", interactions=str(tmp_path / "log.parquet"), items=str(tmp_path / "items.parquet"))
    files.fetch(source, None, tmp_path)
    assert files.read(source, tmp_path).items.to_dicts() == [{"item_id": "i", "title": "x", "day": "2020-01-02"}]
