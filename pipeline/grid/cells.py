"""The grid's cells on disk: one directory per dataset, backbone and adapter, which holds the runs of all seeds.

Some cells also hold several variants of SpecTran, or several dims.
"""

import shutil
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import polars as pl
import polars.selectors as cs

from common.errors import UserError
from pipeline.artifacts import SIDECAR, atomic_directory, read_json, read_signed, remove_directory, scratch, verify
from pipeline.grid.tables import read_csv_table
from pipeline.grid.tuning import TUNED, Tuning
from pipeline.params import Grid, Params
from pipeline.runs import Run, preprocess_command, svd_command

CELLS = Path("grid/cells")
KEYS = ["dataset", "backbone", "adapter"]
PAIR = KEYS[:2]  # a pair of dataset and backbone has one block of rows in a table
SPECTRAN = "spectran"
Over = Literal["seeds", "variants", "dims", "tuned"]
WEIGHTS = "model.safetensors"
# The files of a run in a cell, besides its weights and ranks.
RUN_FILES = ("config.json", "training.json", "run.json", "history.csv", "analysis.json", "spectrum.csv")
NO_MATTER = ("model", "batch_tokens", "device_map")  # where an encoder's model lies, and how fast it is, are not data
STAGES = {"seeds": "cell", "variants": "ablation", "dims": "dimension", "tuned": "tuned"}


@dataclass(frozen=True)
class Cell:
    """A stage of grid/dvc.yaml and its output directory.

    over: what varies between the cell's runs: `seeds`; `variants` of SpecTran and seeds; `dims` and seeds; or `tuned`, for seeds
    with the settings that tuning chose under `loss`.
    """

    dataset: str
    backbone: str
    adapter: str
    over: Over = "seeds"
    loss: str | None = None

    @property
    def directory(self) -> Path:
        suffixes = ([self.loss] if self.loss else []) + ([self.over] if self.over != "seeds" else [])
        return CELLS / "-".join([self.dataset, self.backbone, self.adapter, *suffixes])

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def stage(self) -> str:
        """The name of the cell's DVC stage."""
        adapter = [] if self.over == "variants" else [self.adapter]  # variants are SpecTran's alone
        key = "-".join([self.dataset, self.backbone, *adapter, *([self.loss] if self.loss else [])])
        return f"grid/dvc.yaml:{STAGES[self.over]}@{key}"

    @property
    def exists(self) -> bool:
        return self.directory.is_dir()

    @property
    def command(self) -> str:
        """The command that builds the cell, for messages."""
        return f"`dvc repro {self.stage}`"

    @property
    def dim_option(self) -> str:
        """The option of params.yaml that sets the dim of the cell's runs, for messages."""
        return "grid.dimensions.dims" if self.over == "dims" else "grid.dim"

    def read(self) -> pl.DataFrame:
        """Return a row per run, from metrics.csv. Raises UserError if a file is missing or damaged; weights are not checked."""
        verify(self.directory, self.command, ["metrics.csv", "ranks.parquet"])
        rows = read_csv_table(self.directory / "metrics.csv")
        folders = [self.run_directory(row).relative_to(self.directory).as_posix() for row in rows.iter_rows(named=True)]
        verify(self.directory, self.command, [f"{folder}/{name}" for folder in folders for name in RUN_FILES])
        return rows

    def fingerprints(self) -> list[str]:
        """Return the fingerprints of the cell's runs, in its order. Raises UserError if a file is missing or damaged."""
        folders = [self.run_directory(row) for row in self.read().iter_rows(named=True)]
        return [read_json(folder / "config.json", self.command)["fingerprint"] for folder in folders]

    def is_of_these_runs(self, params: Params) -> bool:
        """Return whether the code and data here would give the cell's runs; true if this cannot be told without the data."""
        try:
            runs = [run.fingerprint for run in self.runs(params)]
        except UserError:
            return True
        return self.fingerprints() == runs

    def differs(self, params: Params) -> str:
        """Return the first setting or input of the cell that is another one now: `train.epochs 200, now 100`; "" if none is.

        Only options that existed when the cell was built and still exist are compared, and data that is here. Cells of older
        published results do not say what their data was. Raises UserError if a file of the cell is missing or damaged.
        """
        rows = self.read()
        try:
            runs = self.runs(params)
        except UserError as error:  # tuning has no valid choice for these params
            return str(error)
        if len(runs) != rows.height:
            return f"{rows.height} runs, now {len(runs)}"
        # The metrics of a cell are those of one choice. Cells from before the option ranked all items.
        excluded = rows["exclude_history"][0] if "exclude_history" in rows.columns else False
        if excluded != params.evaluate.exclude_history:
            return f"evaluate.exclude_history {excluded}, now {params.evaluate.exclude_history}"
        for row, run in zip(rows.iter_rows(named=True), runs, strict=True):
            config = read_json(self.run_directory(row) / "config.json", self.command)
            for name in ("encoder", "dim", "seed"):
                if config[name] != getattr(run, name):
                    return f"{name} {config[name]}, now {getattr(run, name)}"
            for section, options in config["settings"].items():
                current = run.settings.get(section, {})
                for option in sorted(options.keys() & current.keys()):
                    if options[option] != current[option]:
                        return f"{section}.{option} {options[option]}, now {current[option]}"
        data = read_signed(self.directory / SIDECAR, self.command).get("data")
        here = all((folder / SIDECAR).is_file() for folder in (runs[0].sequences, runs[0].spectrum))
        if data and here:  # cells may have been pulled without the data
            other = other_data(data, data_of(runs[0]))
            return f"other {other}" if other else ""
        return ""

    @property
    def choice(self) -> Path | None:
        """The file with the settings that tuning chose for this cell; None if the cell uses those of params.yaml."""
        return TUNED / f"{self.name.removesuffix('-tuned')}.yaml" if self.loss else None

    def tuning(self, params: Params) -> Tuning | None:
        """Return the tuning that chooses this cell's settings; None if params.yaml does."""
        return Tuning(params, self.dataset, self.backbone, self.adapter, self.loss) if self.loss else None

    def runs(self, params: Params) -> list[Run]:
        """Return the runs of this cell. Raises UserError if their settings are to be tuned and none are chosen yet."""
        names = {"dataset": self.dataset, "backbone": self.backbone, "adapter": self.adapter, "dim": params.grid.dim}
        choices: list[dict[str, Any]] = [{}]
        if self.over == "variants":
            choices = [{"changes": {"adapter": {"variant": variant}}} for variant in params.grid.ablations.variants]
        if self.over == "dims":
            choices = [{"dim": dim} for dim in params.grid.dimensions.dims]
        if tuning := self.tuning(params):
            chosen = tuning.chosen
            return [tuning.run(chosen, seed) for seed in params.grid.seeds]
        return [Run.of(params, **names | choice, seed=seed) for choice in choices for seed in params.grid.seeds]

    def run_directory(self, row: dict[str, Any]) -> Path:
        """Return the directory of a run's weights, history and analysis. row: has the run's seed, variant and dim."""
        parent = {"variants": row.get("variant"), "dims": f"dim-{row.get('dim')}"}.get(self.over, "")
        return self.directory / str(parent) / f"seed-{row['seed']}"


def data_of(run: Run) -> dict[str, Any]:
    """Return what tells the run's data from other data of the same name.

    It is the same on every machine and with every version of Polars, unless `dtype: auto` of the encoder stands for another one
    there. Raises UserError if the data is missing or damaged.
    """
    names = ("sequences.parquet", "items.parquet")
    files = verify(run.sequences, preprocess_command(run.dataset), names)["files"]
    log, catalogue = (_content((run.sequences / name).absolute(), files[name]) for name in names)
    spectrum = read_signed(run.spectrum / SIDECAR, svd_command(run.dataset))
    embeddings = spectrum["embeddings"]
    options = embeddings.get("encoder") or {}
    return {
        "log": log,
        "catalogue": catalogue,
        "encoder": embeddings.get("model"),
        "encoder options": {name: value for name, value in options.items() if name not in NO_MATTER},
        "svd.rank_rtol": spectrum.get("rank_rtol"),
    }


@cache
def _content(table: Path, checksum: str) -> str:
    """Return a checksum of a table's values; that of the file also changes with the version of Polars that wrote it.

    checksum: of the file, so that a table that was replaced is read again.
    """
    digest = sha256()
    frame = pl.read_parquet(table, glob=False)
    for column in (column for rows in frame.iter_slices(2**16) for column in rows):
        values = column
        if isinstance(column.dtype, pl.List):
            digest.update(column.list.len().cast(pl.Int64).to_numpy().tobytes())
            values = column.explode().drop_nulls()
        if values.dtype == pl.String:
            values = values.fill_null("")
            digest.update("".join(values).encode())
            values = values.str.len_bytes()
        digest.update(values.cast(pl.Int64).to_numpy().tobytes())
    return digest.hexdigest()


def other_data(recorded: dict[str, Any], current: dict[str, Any]) -> str:
    """Return in what two records of data differ, as far as both have it; "" if in nothing. See `data_of`."""
    for name in [name for name in current if name in recorded]:
        here, there = current[name], recorded[name]
        if isinstance(here, dict) and isinstance(there, dict):
            here, there = ({option: of[option] for option in here.keys() & there.keys()} for of in (here, there))
        if here != there:
            return name
    return ""


def write_cell(cell: Cell, rows: list[dict[str, Any]], run_directories: list[Path], data: dict[str, Any] | None = None) -> None:
    """Write a cell atomically, from a row and a directory for every run. data: see `data_of`; None if it is not known.

    Weights are copied if the directory has them; published runs have none.
    """
    with atomic_directory(cell.directory, {"cell": cell.name, "data": data}) as directory:
        for row, run_directory in zip(rows, run_directories, strict=True):
            target = directory / cell.run_directory(row).relative_to(cell.directory)
            target.mkdir(parents=True)
            for name in RUN_FILES:
                shutil.copyfile(run_directory / name, target / name)
            if (run_directory / WEIGHTS).is_file():
                shutil.copyfile(run_directory / WEIGHTS, target / WEIGHTS)
        pl.concat(
            (
                pl.read_parquet(run_directory / "ranks.parquet", glob=False).select(
                    *(pl.lit(row[name]).alias(name) for name in ("variant", "dim", "seed")),
                    "user_id",
                    cs.starts_with("rank", "top"),
                )
                for row, run_directory in zip(rows, run_directories, strict=True)
            ),
            how="diagonal_relaxed",  # published runs have no lists
        ).write_parquet(directory / "ranks.parquet")
        pl.DataFrame(rows, infer_schema_length=None).write_csv(directory / "metrics.csv")


def listed_cells(grid: Grid) -> list[Cell]:
    """Return every cell that the grid's lists define: those of Table 2, variants, dims, and the tuned cells of Table 2."""
    ablations, dimensions, tuning = grid.ablations, grid.dimensions, grid.tuning
    adapters = grid.adapters
    return [
        *(Cell(d, b, a) for d in grid.datasets for b in grid.backbones for a in grid.adapters),
        *(Cell(d, b, SPECTRAN, "variants") for d in ablations.datasets for b in ablations.backbones),
        *(Cell(d, b, a, "dims") for d in dimensions.datasets for b in dimensions.backbones for a in dimensions.adapters),
        *(Cell(d, b, a, "tuned", o) for d in tuning.datasets for b in tuning.backbones for o in tuning.losses for a in adapters),
    ]


def cell_of_stage(stage: str | None, grid: Grid) -> Cell:
    """Return the cell that a stage of grid/dvc.yaml builds. Raises UserError if the grid's lists define no such stage."""
    for cell in listed_cells(grid):
        if cell.stage.rpartition(":")[2] == stage:
            return cell
    raise UserError(f"the lists of `grid:` in params.yaml define no cell for the DVC stage {stage!r}")


def read_cells(cells: list[Cell], partial: bool = False) -> pl.DataFrame:
    """Return one row per run, from all cells.

    Columns in addition to those of metrics.csv: `over`, as in `Cell`, and `run_directory`, the directory of the run's files.
    Raises UserError if cells are missing, unless `partial`; if all are missing; and if a cell is damaged.
    """
    missing = [cell.name for cell in cells if not cell.exists]
    if missing and (not partial or len(missing) == len(cells)):
        raise UserError(
            f"{len(missing)} of {len(cells)} cells are missing ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); "
            "`python -m stages.grid` trains them, `python -m stages.aggregate --partial` leaves them out"
        )
    frames = []
    for cell in cells:
        if cell.exists:
            frame = cell.read()
            run_directories = [str(cell.run_directory(row)) for row in frame.iter_rows(named=True)]
            frames.append(frame.with_columns(over=pl.lit(cell.over), run_directory=pl.Series(run_directories)))
    return pl.concat(frames, how="diagonal_relaxed")


def move_unlisted_cells(cells: list[Cell]) -> list[str]:
    """Move cells that are not in `cells` from grid/cells into scratch; return their names."""
    listed = {cell.name for cell in cells}
    moved = []
    for directory in sorted(CELLS.glob("*")) if CELLS.is_dir() else []:
        if directory.is_dir() and directory.name not in listed:
            move_to_scratch(directory)
            moved.append(directory.name)
    return moved


def move_to_scratch(directory: Path) -> Path:
    """Move a cell's directory into scratch, in place of one of the same name; return where it is."""
    target = scratch() / "unlisted-cells" / directory.name
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_directory(target)
    shutil.move(directory, target)
    return target
