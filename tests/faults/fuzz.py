"""Bad input of every kind, by the thousand: `python -m tests.faults.fuzz --inputs 10000` (`make fuzz`).

Each input is made by hypothesis from a good one: parameters, reviews, metadata, a user's own tables, sidecars, published results.
Reading it must succeed, or stop in the one line that a stage prints; anything else (a traceback, a hang, several lines) is a
fault. The smallest input with that fault is shown.
"""

import argparse
import contextlib
import copy
import datetime
import gzip
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
from pipeline.data.interactions import build_sequences
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
RESULTS = ROOT / "docs/results/archive-toys"
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


COLUMNS = ("user_id", "item_id", "timestamp", "title", "price")
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
TABLE = st.tuples(
    st.dictionaries(
        st.sampled_from(COLUMNS) | TEXT, st.tuples(st.sampled_from(KINDS), st.sets(st.integers(0, 15), max_size=2)), max_size=3
    ),
    st.sampled_from([".parquet", ".parquet", ".csv", ".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ""]),
    st.just([]) | st.just([]) | CHANGES,
    st.sampled_from([True, True, True, False]),
)


def read_own_files(given: tuple[Any, Any]) -> None:
    """A user's log and catalogue, of any types, written as Parquet, CSV or lines of JSON, and damaged."""
    kinds = {"user_id": KINDS[0], "item_id": KINDS[0], "timestamp": KINDS[1], "title": KINDS[0]}
    names = {}
    for which, own, (chosen, suffix, changes, keep) in zip(
        ("log", "items"), (COLUMNS[:3], ("item_id", "title")), given, strict=True
    ):
        chosen = {name: (kinds[name], set()) for name in own if keep and name not in chosen} | chosen
        columns = {}
        for name, ((kind, value), absent) in chosen.items():
            place = {"user_id": lambda row: row // 4, "item_id": lambda row: row % 4}.get(name, lambda row: row)
            cells = [None if row in absent else value(place(row)) for row in range(16 if which == "log" else 4)]
            columns[name] = pl.Series(name, cells, dtype=kind)
        frame = pl.DataFrame(list(columns.values()))
        path = Path(f"{which}{suffix}")
        try:
            if suffix == ".parquet":
                frame.write_parquet(path)
            elif suffix in (".jsonl", ".json"):
                path.write_text("".join(json.dumps(row, default=str) + "\n" for row in frame.iter_rows(named=True)))
            else:
                frame.write_csv(path, separator="\t" if suffix == ".tsv" else ",")
        except (pl.exceptions.PolarsError, BaseException):  # CSV holds no lists, Parquet no …
            path.write_bytes(b"user_id,item_id\n1,2\n")
        path.write_bytes(damaged(path.read_bytes(), changes))
        names[which] = str(path)
    source = files.Files(kind="files", interactions=names["log"], items=names["items"])
    shutil.rmtree("raw", ignore_errors=True)
    Path("raw").mkdir()
    files.fetch(source, None, Path("raw"))
    template = "{title} {price}" if "price" in given[1][0] else "{title}"
    build_sequences(files.read(source, Path("raw")), Preprocess(core=3, ties="file"), template)


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
    pl.read_csv(RESULTS / "runs.csv").filter(adapter="base").write_csv(folder / "runs.csv")
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
    *(
        f"{which}{suffix}"
        for which in ("log", "items")
        for suffix in (".parquet", ".csv", ".tsv", ".jsonl", ".json", ".csv.gz", "")
    ),
    *("raw", "data", "reviews_X_5.json.gz", "meta_X.json.gz"),
}
TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None], float]] = {
    "params.yaml": (PARAMS, read_params, 0.2),
    "-S name=value": (OVERRIDES, set_by_hand, 0.1),
    "reviews": (st.tuples(lines(REVIEW, line_of_json), CHANGES | st.just([])), read_reviews, 0.15),
    "metadata": (st.tuples(lines(ITEM, line_of_python), CHANGES | st.just([])), read_metadata, 0.15),
    "own files": (st.tuples(TABLE, TABLE), read_own_files, 0.2),
    "sidecars": (SIDECARS, read_sidecars, 0.1),
    "published results": (RESULT_CHANGES, read_published, 0.1),
}


class FaultError(Exception):
    """Neither read nor refused in one line."""


def attempt(read: Callable[[Any], None], counts: Counter[str], name: str, given: Any) -> None:
    """Read an input. Raises FaultError unless it is read, or refused in one line."""

    def hangs(*_: Any) -> None:
        raise FaultError(f"not read within {SECONDS} s of the processor")

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


def fuzz(
    name: str, strategy: st.SearchStrategy[Any], read: Callable[[Any], None], number: int, start: int, counts: Counter[str]
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
            print("\n".join(f"{counts[what]:6} {what}" for what in sorted(counts) if what.startswith(f"{name}: ")), flush=True)
    print(f"{sum(counts.values())} inputs: {len(faults)} faults (tracebacks, hangs, more than one line)")
    if faults:
        sys.exit("\n\n".join(faults))


if __name__ == "__main__":
    main()
