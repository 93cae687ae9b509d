"""Published results: runs without weights that are kept in git, so that anyone can check them, or continue a grid elsewhere.

docs/results/<name>/ contains:

- runs.csv: a row per run, with names, fingerprint, commit, machine, epochs, seconds and metrics.
- <cell>.parquet: a row per run, with the test ranks of every user and the text of the run's files, by file name. The columns
  `ranks`, `ranks_dot` and so on are the columns `rank`, `rank_dot` of ranks.parquet; older files have only `ranks`.
- users-<dataset>.parquet: the users, in the order of the ranks.
- comparisons.csv: tests over users of each block's leader against the others, among every adapter and among the paper's.
- tuned/: the settings that tuning chose for the cells, and comparisons-<loss>.csv of the adapters tuned under a loss.
- groups.csv: figures by popularity of the test item and by length of the history.
- grid.yaml: the lists of the grid; report.md and figures/: the report.
- sidecar.json: the checksums of these files, the commit, and for every dataset what tells its data from other data of that name.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import polars as pl
import polars.selectors as cs

from common.errors import UserError, first_line
from common.names import check_form
from pipeline.artifacts import SIDECAR, atomic_directory, atomic_file, read_json, read_signed, scratch, verify
from pipeline.grid.cells import KEYS, RUN_FILES, Cell, Over, data_of, move_to_scratch, write_cell
from pipeline.grid.tables import read_csv_table
from pipeline.grid.tuning import TUNED
from pipeline.runs import Run, evaluation_code

PUBLISHED = Path("docs/results")
RUNS = "runs.csv"
PUBLISH = "`python -m stages.publish`"
OTHERS = r"(comparisons|groups)\.csv|grid\.yaml|report\.md|figures/[^/]+\.svg|tuned/[^/]+\.(yaml|csv)"  # than runs and ranks
ADDED = ["over", "fingerprint", "commit", "torch"]  # columns of runs.csv that a cell's metrics.csv does not have


def publish(
    cells: list[tuple[Cell, list[Run]]], folder: Path, commit: str, others: Mapping[str, bytes] = MappingProxyType({})
) -> pl.DataFrame:
    """Replace `folder` by one with cells, their runs and `others`; return the rows of runs.csv.

    commit: hash of the code. others: further files, by their path in `folder`. If anything fails, `folder` stays as it is. Raises
    UserError if a cell is damaged, or was built by other code or with other settings or inputs than the current ones, and if
    `folder` holds files that are not from publishing, which would be lost.
    """
    if strangers := _strangers(folder):
        raise UserError(f"{folder} is replaced whole and holds {', '.join(strangers)}, which publishing did not write; move it")
    lines: list[dict[str, Any]] = []
    tables: dict[str, pl.DataFrame] = {}
    data = {}
    for cell, runs in cells:
        rows, tables[f"{cell.name}.parquet"], tables[f"users-{cell.dataset}.parquet"] = _tables(cell, runs, commit)
        lines += rows
        data[cell.dataset] = data_of(runs[0])
    runs_table = pl.DataFrame(lines, infer_schema_length=None)
    with atomic_directory(folder, {"commit": commit, "data": data}) as directory:
        for name, table in tables.items():
            table.write_parquet(directory / name, compression="zstd", compression_level=19)
        runs_table.write_csv(directory / RUNS)
        choices = [cell.choice for cell, _ in cells if cell.choice]
        files = {f"{TUNED.name}/{choice.name}": choice.read_bytes() for choice in choices} | dict(others)
        for name, content in files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(content)
    return runs_table


def _tables(cell: Cell, runs: list[Run], commit: str) -> tuple[list[dict[str, Any]], pl.DataFrame, pl.DataFrame]:
    """Return a cell's rows of runs.csv, its table of runs, and its users. Raises UserError as `publish` does."""
    rows = cell.read()
    if rows.height != len(runs):
        raise UserError(f"{cell.directory} has {rows.height} runs, params.yaml asks for {len(runs)}; run {cell.command}")
    ranks = pl.read_parquet(cell.directory / "ranks.parquet", glob=False)
    users = ranks["user_id"].head(len(ranks) // len(rows))
    lines, frames = [], []
    for row, run, part in zip(rows.iter_rows(named=True), runs, ranks.iter_slices(len(users)), strict=True):
        texts = {name: (cell.run_directory(row) / name).read_text(encoding="utf-8") for name in RUN_FILES}
        if json.loads(texts["config.json"])["fingerprint"] != run.fingerprint:
            raise UserError(f"{cell.directory} is stale: code, parameters or inputs changed since; run {cell.command}")
        if json.loads(texts["analysis.json"])["code"] != evaluation_code():
            raise UserError(f"{cell.directory} is stale: the code that tests runs changed since; run {cell.command}")
        if not part["user_id"].equals(users):
            raise UserError(f"the runs of {cell.directory} hold different users; `dvc repro grid/dvc.yaml` rebuilds it")
        added = {
            "over": cell.over,
            "fingerprint": run.fingerprint,
            "commit": commit,
            "torch": json.loads(texts["run.json"])["torch"],
        }
        lines.append(row | added)
        run_ranks = part.select(cs.starts_with("rank").name.replace("^rank", "ranks").implode())
        frames.append(pl.DataFrame({"fingerprint": run.fingerprint} | texts).hstack(run_ranks))
    return lines, pl.concat(frames), users.to_frame()


def _strangers(folder: Path) -> list[str]:
    """Return the files in a folder that publishing does not write there.

    The sidecar lists what it wrote. Those of older versions list only runs and ranks, and one that is missing or damaged nothing,
    so files with the names of the others count as written.
    """
    try:
        listed = set(read_signed(folder / SIDECAR, PUBLISH)["files"])
        others = OTHERS
    except UserError:
        listed, others = {SIDECAR}, rf"{OTHERS}|runs\.csv|[^/]+\.parquet"
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return [name for name in there if name not in {SIDECAR, *listed} and not re.fullmatch(others, name)]


def _copy(file: Path, target: Path) -> None:
    with atomic_file(target) as partial:
        partial.write_bytes(file.read_bytes())


def _cell(row: dict[str, Any]) -> Cell:
    """Return the cell of a row of runs.csv, whose names `_check_lines` has checked."""
    return Cell(row["dataset"], row["backbone"], row["adapter"], row["over"], row["loss"] if row["over"] == "tuned" else None)


@cache
def _published(root: Path) -> dict[str, Path]:
    """Return {fingerprint: Parquet file with the run} for all published results below `root`."""
    return {
        row["fingerprint"]: file.parent / f"{_cell(row).name}.parquet"
        for file in sorted(root.glob(f"*/{RUNS}"))
        for row in read_runs(file.parent).iter_rows(named=True)
    }


def read_runs(folder: Path) -> pl.DataFrame:
    """Return the rows of runs.csv. Raises UserError if it is damaged or is no list of runs.

    Paths are built from the names in it, so they are checked even if the checksum is right.
    """
    lines = read_table(folder, RUNS)
    _check_lines(lines, f"{folder / RUNS}")
    return lines


def read_table(folder: Path, name: str) -> pl.DataFrame:
    """Return a CSV file of a published folder. Raises UserError if it is missing, damaged or not CSV."""
    file = folder / name
    if not file.is_file():
        raise UserError(f"{file} is missing; `python -m stages.publish {folder.name}` writes it")
    verify(folder, PUBLISH, [name])
    try:
        return read_csv_table(file)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file} is not CSV ({first_line(error)}); `git checkout {folder}`") from None


def _check_lines(lines: pl.DataFrame, where: str) -> None:
    """Raise UserError that starts with `where` unless every line names a run, and figures are numbers."""
    if missing := [name for name in (*KEYS, "variant", "dim", "seed", "loss", *ADDED) if name not in lines.columns]:
        raise UserError(f"{where}: column '{missing[0]}' is missing; publish again with the version of the project that is here")
    for name, kind in lines.schema.items():
        if (name in ("dim", "seed") and not kind.is_integer()) or ("@" in name and not kind.is_numeric()):
            raise UserError(f"{where}: column '{name}' holds other things than numbers")
    for row in lines.iter_rows(named=True):
        for name in (*KEYS, "fingerprint", "loss", *(["variant"] if row["variant"] is not None else [])):
            check_form(f"{where}: {name}", row[name])
        if row["over"] not in get_args(Over):
            raise UserError(f"{where}: over is {row['over']!r}, expected one of {', '.join(get_args(Over))}")
    if lines["dim"].has_nulls() or lines["seed"].has_nulls():
        raise UserError(f"{where}: a run has no dim or no seed")


def published_run(run: Run) -> Path | None:
    """Return a directory with the published files of a run, as in scratch but without weights; None if it is not published.

    A run that was tested by other evaluation code than the current one counts as not published.
    """
    file = _published(PUBLISHED.absolute()).get(run.fingerprint)
    if file is None:
        return None
    run_directory = unpack(file, run.fingerprint, run.dataset)
    return run_directory if read_json(run_directory / "analysis.json", str(file)).get("code") == evaluation_code() else None


def restore(folder: Path) -> list[Cell]:
    """Write the cells of `folder` that are not in grid/cells to it, without weights; return them.

    A cell of other runs that is there is moved to scratch, as unlisted cells are. The settings that tuning chose for the cells
    are copied to grid/tuned unless a choice is there.
    """
    lines = read_runs(folder)
    data = read_data(folder)
    restored = []
    for part in lines.partition_by("dataset", "backbone", "adapter", "over", "loss", maintain_order=True):
        rows = part.drop(ADDED).to_dicts()
        cell = _cell(part.row(0, named=True))
        if cell.choice and not cell.choice.exists() and (choice := folder / TUNED.name / cell.choice.name).is_file():
            _copy(choice, cell.choice)
        if not _is_of(cell, part["fingerprint"].to_list()):
            run_directories = [unpack(folder / f"{cell.name}.parquet", name, cell.dataset) for name in part["fingerprint"]]
            if cell.exists:
                print(
                    f"publish: {cell.directory} is of other runs and was moved to {move_to_scratch(cell.directory)}", flush=True
                )
            write_cell(cell, rows, run_directories, data.get(cell.dataset))
            restored.append(cell)
    return restored


def _is_of(cell: Cell, fingerprints: list[str]) -> bool:
    """Return whether a cell is there, intact, and has these runs."""
    try:
        return cell.exists and cell.fingerprints() == fingerprints
    except UserError:
        return False


def read_data(folder: Path) -> dict[str, dict[str, Any]]:
    """Return {dataset: see `data_of`} of published results; older ones do not say what their data was."""
    data = read_signed(folder / SIDECAR, PUBLISH).get("data", {})
    if not isinstance(data, dict) or not all(isinstance(of_dataset, dict) for of_dataset in data.values()):
        raise UserError(f"{folder / SIDECAR}: data is not what it should be; publish it again")
    return data


def unpack(file: Path, fingerprint: str, dataset: str) -> Path:
    """Write the files of a published run to scratch; return their directory. Raises UserError if source or copy is damaged.

    If the run was published again meanwhile, on another machine for example, the copy is written again.
    """
    run_directory = scratch() / "published" / fingerprint
    source = verify(file.parent, PUBLISH, [file.name])["files"][file.name]
    copy = run_directory / SIDECAR
    if not copy.is_file() or read_signed(copy, PUBLISH).get("source") != source:
        verify(file.parent, PUBLISH, [f"users-{dataset}.parquet"])
        try:
            row = pl.read_parquet(file, glob=False).filter(fingerprint=fingerprint)
            texts = {name: str(row[name].cast(pl.String).item()) for name in RUN_FILES}
            ranks = row.select(cs.starts_with("ranks").explode().name.replace("^ranks", "rank"))
            if not ranks.width or not all(kind.is_integer() for kind in ranks.dtypes):
                raise ValueError("its ranks are not whole numbers")
            users = pl.read_parquet(file.parent / f"users-{dataset}.parquet", glob=False).select("user_id").hstack(ranks)
        except (pl.exceptions.PolarsError, ValueError) as error:
            raise UserError(f"{file} does not hold run {fingerprint} ({first_line(error)}); publish it again") from None
        with atomic_directory(run_directory, {"run": fingerprint, "source": source}) as directory:
            for name, text in texts.items():
                (directory / name).write_text(text, encoding="utf-8")
                if name.endswith(".json") and not isinstance(read_json(directory / name, PUBLISH), dict):
                    raise UserError(f"{file}: {name} of run {fingerprint} is not what it should be; publish it again")
            users.write_parquet(directory / "ranks.parquet")
    verify(run_directory, PUBLISH)
    return run_directory
