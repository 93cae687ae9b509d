"""Bad input of every kind, by the thousand: `python -m tests.faults.fuzz --inputs 10000` (`make fuzz`).

Each input is made by hypothesis from a good one: parameters, reviews, metadata, a user's own tables, sidecars, published results.
Reading it must succeed, or stop in the one line that a stage prints; anything else (a traceback, a hang, several lines) is a
fault. The smallest input with that fault is shown.
"""

import argparse
import contextlib
import copy
import csv
import datetime
import gzip
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pipeline.artifacts import SIDECAR, read_signed, signed, verify, write_signed
from pipeline.data.dropped import dropped
from pipeline.data.interactions import Dataset, build_sequences
from pipeline.data.sources import Raw, amazon2014, files, source_module
from pipeline.grid import published
from pipeline.grid.cells import listed_cells
from pipeline.params import Preprocess, load_params
from pipeline.report.publishing import restore_grid
from pipeline.runs import Run
from stages import explained
from tests.sign import sign

ROOT = Path(__file__).parents[2]
GOOD = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
RESULTS = ROOT / "docs/results/toys"
SECONDS = 20  # of the processor, until reading is taken to hang; waiting counts ten times less, as other programs make it wait
TIMERS = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 10 * SECONDS))
LONGEST = 3000  # characters of a line

NASTY = st.sampled_from(
    [
        *(
            "",
            " ",
            ".",
            "..",
            "../..",
            "a/b",
            "/",
            "a\0b",
            "x" * 5000,
            "$(touch x)",
            "a\nb",
            "é\u202e",
            "-x",
            "null",
            "{title",
            "{}",
        ),
        *(
            "{0}",
            "{a.b}",
            "{a!r}",
            "nan",
            "1e999",
            "file:///x",
            "http://a:b@c",
            "https://[",
            "~nobody/x",
            "[[[",
            "!!python/object:x",
        ),
        *(0, -1, 1, 2**31, 2**63, 2**64, 10**400, True, False, None, float("nan"), float("inf"), -0.0, 1e-320, 0.5),
        *([], {}, [[]], [None], {"": None}, {"kind": "demo"}, datetime.date(2020, 2, 3), datetime.datetime(1, 1, 1), b"\xff"),
    ]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALAR = st.one_of(NASTY, st.integers(), st.floats(), st.booleans(), st.none(), TEXT)
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6)
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["\ud800", "x" * 3000])
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "repeat", "insert"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    max_size=4,
)


def damaged(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """Bytes with changes, each at a place given as a share of the length."""
    for kind, share, piece in changes:
        place = int(share * max(0, len(content) - 1))
        if kind == "flip" and content:
            content = content[:place] + bytes([content[place] ^ piece[0]]) + content[place + 1 :]
        elif kind == "cut":
            content = content[:place]
        elif kind == "repeat":
            content = content[:place] + content[place : place + 40] * piece[0] + content[place + 40 :]
        elif kind == "insert":
            content = content[:place] + piece + content[place:]
    return content


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key and item in nested values."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


@st.composite
def changed(draw: st.DrawFn, good: Any, value: st.SearchStrategy[Any], most: int = 3) -> Any:
    """Nested values, in which up to `most` values are replaced, removed, renamed or added."""
    made = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, most))):
        known = list(places(made))
        if not known:
            return made
        *path, last = draw(st.sampled_from(known))
        section = made
        for key in path:
            section = section[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
        if kind == "remove":
            del section[last]
        elif isinstance(section, list) or kind == "replace":
            section[last] = draw(value)
        else:
            section[draw(TEXT | NASTY.filter(lambda one: not isinstance(one, dict | list)))] = (
                section.pop(last) if kind == "rename" else draw(value)
            )
    return made


# ------------------------------------------------------------------------------------------------------ what is read, and how


def read_params(text: bytes) -> None:
    """As `stages.validate`, and what other stages make of parameters before they read data."""
    Path("params.yaml").write_bytes(text)
    params = load_params(Path("params.yaml"))
    _ = Run.of(params).name
    _ = [cell.name for cell in listed_cells(params.grid)]
    for dataset, source in params.sources.items():
        params.preprocessing(dataset)
        source_module(source.kind)


def yaml_text(values: Any) -> bytes:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


PARAMS = changed(GOOD, VALUE).map(yaml_text) | CHANGES.map(lambda changes: damaged((ROOT / "params.yaml").read_bytes(), changes))


def set_by_hand(given: tuple[tuple[Any, ...], Any]) -> None:
    """A value as `dvc exp run -S place=value` writes it into params.yaml."""
    path, value = given
    values = copy.deepcopy(GOOD)
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    read_params(yaml_text(values))


OVERRIDES = st.tuples(
    st.sampled_from(list(places(GOOD))),
    VALUE | TEXT.map(lambda text: _parsed(text)),
)


def _parsed(text: str) -> Any:
    with contextlib.suppress(Exception):
        return yaml.safe_load(text)
    return text


REVIEW = {"reviewerID": "u1", "asin": "A1", "unixReviewTime": 1_400_000_000, "overall": 5.0, "reviewText": "x"}
ITEM = {"asin": "A1", "title": "An item", "brand": "b", "categories": [["x", "y"]], "description": "d", "price": 1.5}


def line_of_json(values: Any) -> bytes:
    return json.dumps(values, default=str, skipkeys=True).encode()


def line_of_python(values: Any) -> bytes:
    return repr(values).encode("utf-8", "surrogatepass")


def lines(good: Any, write: Callable[[Any], bytes]) -> st.SearchStrategy[list[bytes]]:
    one = changed(good, JSON).map(write)
    return st.lists(
        st.one_of(st.just(write(good)), one, st.tuples(one, CHANGES).map(lambda two: damaged(*two)), st.binary(max_size=60)),
        max_size=8,
    )


def read_reviews(given: tuple[list[bytes], list[tuple[str, float, bytes]]]) -> None:
    """A file of reviews, its lines damaged, and the file itself."""
    content, changes = given
    good = [line_of_json(REVIEW | {"reviewerID": f"u{u}", "asin": f"A{i}"}) for u in range(4) for i in range(4)]
    path = Path("reviews_X_5.json.gz")
    path.write_bytes(damaged(gzip.compress(b"\n".join([*content, *good])), changes))
    amazon2014.check_gzip(path)
    table = amazon2014.read_reviews(path)
    items = pl.DataFrame({"item_id": [f"A{i}" for i in range(4)], "title": ["some title"] * 4})
    build_sequences(Raw(table, items), Preprocess(core=3))


def read_metadata(given: tuple[list[bytes], list[tuple[str, float, bytes]]]) -> None:
    content, changes = given
    good = [line_of_python(ITEM | {"asin": f"A{i}"}) for i in range(400)]
    path = Path("meta_X.json.gz")
    path.write_bytes(damaged(gzip.compress(b"\n".join([*content, *good]), 1), changes))
    amazon2014.check_gzip(path)
    items, _ = amazon2014.read_items(path, {f"A{i}" for i in range(4)})
    log = pl.DataFrame(
        [(f"u{u}", f"A{i}", u) for u in range(3) for i in range(4)], ["user_id", "item_id", "timestamp"], orient="row"
    )
    build_sequences(Raw(log, items), Preprocess(core=3), "{title} {brand} {categories} {description}")


# A user's own log and catalogue begin as tables that load, in any form that is read, and one or two things in them are changed.
USERS, ITEMS, EACH = 20, 12, 10  # so that a row or two may be lost (1 % of a table) and 3-core still keeps all
KINDS: tuple[tuple[Any, Callable[[int], Any]], ...] = (
    (pl.String, "{:03}".format),
    (pl.Int64, int),
    (pl.UInt8, lambda i: i % 200),
    (pl.Float64, float),
    (pl.Float64, lambda i: [0.5, float("nan"), float("inf"), 1e300][i % 4]),
    (pl.Boolean, lambda i: i % 2 == 0),
    (pl.Date, lambda i: datetime.date(2020, 1, 1 + i % 28)),
    (pl.Datetime("ms"), lambda i: datetime.datetime(2020, 1, 1 + i % 28)),
    (pl.Duration, lambda i: datetime.timedelta(i)),
    (pl.Time, lambda i: datetime.time(i % 24)),
    (pl.List(pl.String), lambda i: [str(i), None]),
    (pl.List(pl.List(pl.Int64)), lambda i: [[i]]),
    (pl.Array(pl.Int64, 2), lambda i: [i, i]),
    (pl.Struct({"a": pl.Int64}), lambda i: {"a": i}),
    (pl.Binary, lambda i: b"\xff%d" % i),
    (pl.Categorical, str),
    (pl.Enum(["a", "b"]), lambda i: "ab"[i % 2]),
    (pl.Decimal(10, 2), lambda i: i),
    (pl.Null, lambda i: None),
)
IDS: tuple[Callable[[int], Any], ...] = ("u{:03}".format, 'é {}, "x"'.format, str, int)
START = 1_500_000_000
TIMES: tuple[tuple[Callable[[int], Any], dict[str, Any]], ...] = (
    (lambda row: START + 1000 * row, {}),
    (lambda row: START + row // 5, {}),
    (lambda row: row, {"time": "s"}),
    (lambda row: (START + row) * 1000 + 7, {}),
    (lambda row: (START + row) * 10**9 + 1, {"time": "ns"}),
    (lambda row: START + row + 0.25, {}),
    (lambda row: datetime.datetime(2020, 1, 1) + datetime.timedelta(minutes=row), {}),
    (lambda row: datetime.date(2020, 1, 1) + datetime.timedelta(row), {}),
    (lambda row: f"2020-01-{1 + row // 24:02}T{row % 24:02}:30:00+02:00", {}),
    (lambda row: f"{1 + row // 24}/2/2020 {row % 24:02}:30", {"time": "%d/%m/%Y %H:%M"}),
)
FORMS = (
    *((".parquet", ""), (".parquet", ""), (".csv", ","), (".csv", ";"), (".csv", "|"), (".tsv", "\t"), (".dat", "::")),
    *((".csv.gz", ","), (".csv", "utf-16"), (".csv", "latin-1"), (".csv", "no header"), (".inter", "recbole")),
    *((".jsonl", "json"), (".json", "json"), (".json", "python"), (".jsonl.gz", "json")),
)
COLUMNS = {"log": ["user_id", "item_id", "timestamp", "rating"], "items": ["item_id", "title", "price"]}
SHARE = st.floats(0, 1)
NAME = st.sampled_from(["user_id", "item_id", "title", "price", "rating", "x"]) | TEXT


def table_changes(which: str) -> st.SearchStrategy[tuple[Any, ...]]:
    """One change of the log or the catalogue: of a cell, of rows, of a column, or of bytes of the file."""
    column = st.sampled_from(COLUMNS[which])
    change = st.one_of(
        st.tuples(st.just("cell"), column, SHARE, SCALAR),
        st.tuples(st.just("cell"), column, SHARE, TEXT),
        st.tuples(st.just("rows"), st.sampled_from(["remove", "repeat", "reverse", "few"]), SHARE),
        st.tuples(st.just("bytes"), CHANGES.filter(lambda changes: len(changes) == 1)),
        st.tuples(st.just("add"), NAME, st.sampled_from(KINDS)),
        st.tuples(st.just("type"), column, st.sampled_from(KINDS)),
        st.tuples(st.just("rename"), column, NAME),
    )
    return st.tuples(st.just(which), change)


OWN = st.fixed_dictionaries(
    {
        "forms": st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS)),
        "ids": st.tuples(st.sampled_from(IDS), st.sampled_from(IDS)),
        "times": st.sampled_from(TIMES),
        "changes": st.lists(table_changes("log") | table_changes("items"), min_size=1, max_size=2),
        "options": st.sampled_from([{}, {}, {"min_rating": 2.5}, {"columns": {"rating": "rating"}}]),
        "preprocess": st.sampled_from(
            [{}, {"ties": "shuffled"}, {"cap": 4}, {"split": "global", "valid_from": START + 100_000, "test_from": "2017-07-16"}]
        ),
        "template": st.sampled_from(["{title}", "{title} ({price})"]),
    }
)


def good_tables(given: dict[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """A log of USERS x EACH rows and a catalogue of ITEMS, as columns."""
    user, item = given["ids"]
    rows = [(u, (u + k) % ITEMS) for k in range(EACH) for u in range(USERS)]
    log = {
        "user_id": [user(u) for u, _ in rows],
        "item_id": [item(i) for _, i in rows],
        "timestamp": [given["times"][0](row) for row in range(len(rows))],
        "rating": [float(1 + row % 5) for row in range(len(rows))],
    }
    titles = [f"Title &amp; {i}, «x»" for i in range(ITEMS)]
    return {"log": log, "items": {"item_id": [item(i) for i in range(ITEMS)], "title": titles, "price": [1.5] * ITEMS}}


def change_table(table: dict[str, Any], types: dict[str, Any], kind: str, *how: Any) -> None:
    """Change the columns of a table, or their types, in place."""
    size = len(next(iter(table.values())))
    if kind == "cell" and how[0] in table:
        column, share, value = how
        table[column][int(share * (size - 1))] = value
    elif kind == "rows":
        number = 1 + int(how[1] * 2)
        for name, cells in table.items():
            made = {"remove": cells[number:], "repeat": cells[:number] + cells, "few": cells[:number], "reverse": cells[::-1]}
            table[name] = made[how[0]]
    elif kind == "rename":
        column, name = how
        if column in table:
            table[name] = table.pop(column)
    elif kind in ("add", "type"):
        column, (dtype, value) = how
        if kind == "add" or column in table:
            table[column] = [value(row) for row in range(size)]
            types[column] = dtype


def write_table(path: Path, form: str, table: dict[str, list[Any]], types: dict[str, Any]) -> None:
    """Write a table in one of FORMS; a column that the form cannot hold is written as text."""
    if path.suffix == ".parquet":
        columns = []
        for name, cells in table.items():
            try:
                columns.append(pl.Series(name, cells, dtype=types.get(name)))
            except (pl.exceptions.PolarsError, TypeError, OverflowError, ValueError):  # of several types
                columns.append(pl.Series(name, [None if cell is None else _printed(cell) for cell in cells], dtype=pl.String))
        pl.DataFrame(columns).write_parquet(path)
        return
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    if form in ("json", "python"):
        write = line_of_json if form == "json" else line_of_python
        content = b"\n".join(write(row if form == "json" else {k: _printed(v) for k, v in row.items()}) for row in rows)
    else:
        separator = {"recbole": "\t", "utf-16": ",", "latin-1": ",", "no header": ","}.get(form, form)
        text = io.StringIO()
        lines = [[_printed(cell) for cell in row.values()] for row in rows]
        if form != "no header":
            lines.insert(0, [f"{name}:token" if form == "recbole" else name for name in table])
        if form in ("recbole", "::"):
            text.write("\n".join(separator.join(line) for line in lines))
        else:
            csv.writer(text, delimiter=separator).writerows(lines)
        encoding = form if form in ("utf-16", "latin-1") else "utf-8"
        content = text.getvalue().encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _printed(value: Any) -> str:
    return "" if value is None else str(value)


def read_own_files(given: dict[str, Any]) -> Dataset:
    """A user's log and catalogue, with one or two changes, as `download` and `preprocess` read them."""
    names = {}
    options = dict(given["options"]) | given["times"][1]
    for (which, table), (suffix, form) in zip(good_tables(given).items(), given["forms"], strict=True):
        types: dict[str, Any] = {}
        if form == "no header":
            places = {name: place for place, name in enumerate(table, start=1)}
            options["columns" if which == "log" else "item_columns"] = places
        for changed_one, change in given["changes"]:
            if changed_one == which and change[0] != "bytes":
                change_table(table, types, *change)
        path = Path(f"{which}{suffix}")
        write_table(path, form, table, types)
        for changed_one, change in given["changes"]:
            if changed_one == which and change[0] == "bytes":
                path.write_bytes(damaged(path.read_bytes(), change[1]))
        names[which] = str(path)
    source = files.Files(kind="files", interactions=names["log"], items=names["items"], **options)
    preprocess = Preprocess(**({"core": 3, "ties": "file"} | given["preprocess"]))
    shutil.rmtree("raw", ignore_errors=True)
    Path("raw").mkdir()
    with contextlib.redirect_stdout(None):
        files.fetch(source, None, Path("raw"))
    raw = files.read(source, Path("raw"))
    sequences = build_sequences(raw, preprocess, given["template"])
    dropped(raw, sequences, preprocess)
    return sequences


SIDECARS = st.one_of(
    CHANGES.map(lambda changes: (None, changes)),
    st.tuples(JSON, st.just([])),
    st.tuples(changed({"embeddings": {"items": "x"}, "files": {"a": "b", "items.parquet": "x"}}, JSON), st.just([])),
)


def read_sidecars(given: tuple[Any, Any]) -> None:
    """Sidecars of any content: damaged, of another form, and such that their checksum is right."""
    content, changes = given
    params = load_params(ROOT / "params.yaml")
    run = Run.of(params)
    for directory in (run.sequences, run.spectrum):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "items.parquet").touch()
        file = directory / SIDECAR
        if isinstance(content, dict):
            content = {"files": {"items.parquet": _EMPTY}} | json.loads(json.dumps(content, default=str, skipkeys=True))
            file.write_text(json.dumps(signed(file, content)))
        else:
            write_signed(file, {"files": {"items.parquet": _EMPTY}, "embeddings": {"items": _EMPTY}})
            file.write_bytes(json.dumps(content).encode() if content is not None else damaged(file.read_bytes(), changes))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, "data")
        read_signed(run.sequences / SIDECAR, "it")
        verify(run.sequences, "it")
        run.verify_inputs()
        _ = run.fingerprint


_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def published_folder() -> Path:
    """One published cell of a few users, made of a real one."""
    folder = Path("docs/results/good")
    folder.mkdir(parents=True)
    pl.read_csv(RESULTS / "runs.csv").filter(adapter="base", over="seeds").write_csv(folder / "runs.csv")
    frame = pl.read_parquet(RESULTS / "toys-sasrec-base.parquet")
    ranks = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
    frame.with_columns(pl.col(*ranks).list.head(5)).write_parquet(folder / "toys-sasrec-base.parquet")
    pl.read_parquet(RESULTS / "users-toys.parquet").head(5).write_parquet(folder / "users-toys.parquet")
    shutil.copyfile(RESULTS / "grid.yaml", folder / "grid.yaml")
    return folder


RESULT_CHANGES = st.one_of(
    st.tuples(st.just("csv"), st.sampled_from(pl.read_csv(RESULTS / "runs.csv").columns), SCALAR),
    st.tuples(
        st.just("drop"), st.sampled_from(["fingerprint", "config.json", "ranks", "user_id", "dataset", "seed", "loss"]), SCALAR
    ),
    st.tuples(st.just("cell"), st.sampled_from(["fingerprint", "config.json", "run.json", "ranks", "analysis.json"]), SCALAR),
    st.tuples(
        st.sampled_from(["runs.csv", "toys-sasrec-base.parquet", "users-toys.parquet", "grid.yaml"]), CHANGES, st.booleans()
    ),
)


def read_published(change: tuple[str, Any, Any]) -> None:
    """Results that somebody published: changed, and signed again as if that were right."""
    for folder in ("docs/results/changed", "grid", ".scratch"):
        shutil.rmtree(folder, ignore_errors=True)
    folder = Path("docs/results/changed")
    shutil.copytree("docs/results/good", folder)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    published._published.cache_clear()
    kind, name, value = change
    cell = folder / "toys-sasrec-base.parquet"
    if kind in ("csv", "drop"):
        table = pl.read_csv(folder / "runs.csv", infer_schema=False)
        if name in table.columns:
            changed_table = table.drop(name) if kind == "drop" else table.with_columns(pl.lit(str(value)).alias(name))
            changed_table.write_csv(folder / "runs.csv")
    if kind in ("cell", "drop"):
        for file in (cell, folder / "users-toys.parquet"):
            frame = pl.read_parquet(file)
            if name in frame.columns:
                (frame.drop(name) if kind == "drop" else frame.with_columns(pl.lit(str(value)).alias(name))).write_parquet(file)
    signed_after = kind in ("csv", "drop", "cell") or value
    if not signed_after:
        sign(folder)
    if kind not in ("csv", "drop", "cell"):
        (folder / kind).write_bytes(damaged((folder / kind).read_bytes(), name))
    if signed_after:
        sign(folder)
    restore_grid(folder)
    outside = {path.name for path in Path().iterdir()} - {"docs", "grid", ".scratch", "params.yaml"}
    assert not {name for name in outside if name not in KNOWN_NAMES}, f"written outside of the results: {outside}"


KNOWN_NAMES = {
    *(f"{which}{suffix}" for which in COLUMNS for suffix, _ in FORMS),
    *("raw", "data", "reviews_X_5.json.gz", "meta_X.json.gz"),
}
TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any], float]] = {
    "params.yaml": (PARAMS, read_params, 0.2),
    "-S name=value": (OVERRIDES, set_by_hand, 0.1),
    "reviews": (st.tuples(lines(REVIEW, line_of_json), CHANGES | st.just([])), read_reviews, 0.15),
    "metadata": (st.tuples(lines(ITEM, line_of_python), CHANGES | st.just([])), read_metadata, 0.15),
    "own files": (OWN, read_own_files, 0.2),
    "sidecars": (SIDECARS, read_sidecars, 0.1),
    "published results": (RESULT_CHANGES, read_published, 0.1),
}


RARELY_VALID = ("sidecars",)  # one in forty


class FaultError(Exception):
    """Neither read nor refused in one line."""


def attempt(read: Callable[[Any], Any], counts: Counter[str], name: str, given: Any) -> None:
    """Read an input. Raises FaultError unless it is read, or refused in one line."""

    def hangs(*_: Any) -> None:
        raise FaultError(f"not read within {SECONDS} s of the processor")

    unraised: list[str] = []  # in a callback from C, which Python only prints
    sys.unraisablehook = lambda raised: unraised.append("".join(traceback.format_exception(raised.exc_value)))
    for sent, timer, limit in TIMERS:
        signal.signal(sent, hangs)
        signal.setitimer(timer, limit)
    try:
        read(given)
        counts[f"{name}: read"] += 1
    except FaultError:
        raise
    except BaseException as error:  # a panic of polars is no Exception
        line = explained(error) if isinstance(error, Exception) else None
        if isinstance(error, KeyboardInterrupt):
            raise
        if line is None:
            raise FaultError("".join(traceback.format_exception(error))[-2500:]) from None
        if "\n" in line or len(line) > LONGEST:
            raise FaultError(f"not one short line: {line[:LONGEST]!r}") from None
        counts[f"{name}: refused in one line"] += 1
    finally:
        for _, timer, _ in TIMERS:
            signal.setitimer(timer, 0)
        sys.unraisablehook = sys.__unraisablehook__
    if unraised:
        raise FaultError(f"Traceback is printed: {unraised[0][-2500:]}")


def fuzz(
    name: str, strategy: st.SearchStrategy[Any], read: Callable[[Any], Any], number: int, start: int, counts: Counter[str]
) -> str | None:
    """Read so many inputs; return the fault of the smallest that has one, else None."""
    options = settings(
        max_examples=number,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )

    @seed(start)
    @options
    @given(taken=strategy)
    def inputs(taken: Any) -> None:
        attempt(read, counts, name, taken)

    try:
        inputs()
    except FaultError as fault:
        return f"{name}: {fault}\n{''.join(getattr(fault, '__notes__', []))[:1500]}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--only", choices=list(TARGETS), help="one kind of input")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    os.environ.pop("SPECTRAN_SCRATCH", None)
    counts: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, contextlib.chdir(folder):
        published_folder()
        for name, (strategy, read, share) in TARGETS.items():
            if chosen.only not in (None, name):
                continue
            number = int(chosen.inputs * (1 if chosen.only else share))
            if fault := fuzz(name, strategy, read, number, chosen.seed, counts):
                faults.append(fault)
            if not counts[f"{name}: read"] and name not in RARELY_VALID:
                faults.append(f"{name}: no input was valid, so nothing behind the first check was tried")
            print("\n".join(f"{counts[what]:6} {what}" for what in sorted(counts) if what.startswith(f"{name}: ")), flush=True)
    print(f"{sum(counts.values())} inputs: {len(faults)} faults (tracebacks, hangs, more than one line, or no valid input)")
    if faults:
        sys.exit("\n\n".join(faults))


if __name__ == "__main__":
    main()
