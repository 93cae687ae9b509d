"""The grid's cells on disk: one directory per (dataset, backbone, adapter), seeds inside; some hold several variants or dims."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import polars.selectors as cs

from common.errors import UserError
from pipeline.artifacts import atomic_directory, read_json, remove_directory, scratch, verify
from pipeline.grid.tuning import TUNED, Tuning
from pipeline.params import Grid, Params
from pipeline.runs import Run

CELLS = Path("grid/cells")
KEYS = ["dataset", "backbone", "adapter"]
BLOCK = KEYS[:2]  # what the rows of one block of a table have in common
OURS = "spectran"
Over = Literal["seeds", "variants", "dims", "tuned"]
WEIGHTS = "model.safetensors"
# Of a run in a cell, beside weights and ranks.
RUN_FILES = ("config.json", "training.json", "run.json", "history.csv", "analysis.json", "spectrum.csv")
STAGES = {"seeds": "cell", "variants": "ablation", "dims": "dimension", "tuned": "tuned"}


@dataclass(frozen=True)
class Cell:
    """A stage of grid/dvc.yaml and its directory: one adapter over the seeds, or also over SpecTran's variants, or over dims.

    Or over the seeds with the settings that tuning chose under `loss`.
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
        """As DVC knows it."""
        key = self.name.removesuffix(f"-{self.over}")
        return f"grid/dvc.yaml:{STAGES[self.over]}@{key.removesuffix(f'-{OURS}') if self.over == 'variants' else key}"

    @property
    def exists(self) -> bool:
        return self.directory.is_dir()

    @property
    def command(self) -> str:
        """What makes it, for messages."""
        return f"`dvc repro {self.stage}`"

    def read(self) -> pl.DataFrame:
        """A row per run, as in metrics.csv. Raises UserError where a file of the cell is damaged; weights are not looked at."""
        verify(self.directory, self.command, ["metrics.csv", "ranks.parquet"])
        rows = pl.read_csv(self.directory / "metrics.csv")
        folders = [self.run_directory(row).relative_to(self.directory).as_posix() for row in rows.iter_rows(named=True)]
        verify(self.directory, self.command, [f"{folder}/{name}" for folder in folders for name in RUN_FILES])
        return rows

    def differs(self, params: Params) -> str:
        """The first setting that a run of the cell was made with and that is another today: `train.epochs 200, now 100`.

        Empty where there is none. Only options that existed when the cell was made and still exist are compared. Raises UserError
        where a file of the cell is damaged.
        """
        rows = self.read()
        try:
            wanted = self.runs(params)
        except UserError as error:  # of tuning: nothing is chosen for what params.yaml asks today
            return str(error)
        if len(wanted) != rows.height:
            return f"{rows.height} runs, now {len(wanted)}"
        for row, run in zip(rows.iter_rows(named=True), wanted, strict=True):
            config = read_json(self.run_directory(row) / "config.json", self.command)
            for name in ("encoder", "dim", "seed"):
                if config[name] != getattr(run, name):
                    return f"{name} {config[name]}, now {getattr(run, name)}"
            for section, options in config["settings"].items():
                today = run.settings.get(section, {})
                for option in sorted(options.keys() & today.keys()):
                    if options[option] != today[option]:
                        return f"{section}.{option} {options[option]}, now {today[option]}"
        return ""

    @property
    def choice(self) -> Path | None:
        """The file with the settings that tuning chose for this cell; None where params.yaml sets them."""
        return TUNED / f"{self.name.removesuffix('-tuned')}.yaml" if self.loss else None

    def tuning(self, params: Params) -> Tuning | None:
        """The tuning whose choice this cell is trained with."""
        return Tuning(params, self.dataset, self.backbone, self.adapter, self.loss) if self.loss else None

    def runs(self, params: Params) -> list[Run]:
        """What is trained for this cell. Raises UserError where it wants settings that are not chosen yet."""
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
        """Where a run's weights, history and analysis lie; `row` has its seed, variant and dim."""
        above = {"variants": row.get("variant"), "dims": f"dim-{row.get('dim')}"}.get(self.over, "")
        return self.directory / str(above) / f"seed-{row['seed']}"


def write_cell(cell: Cell, rows: list[dict[str, Any]], run_directories: list[Path]) -> None:
    """Put a cell in place, whole: a row and the directory of every run. Weights are copied where there are any."""
    with atomic_directory(cell.directory, {"cell": cell.name}) as directory:
        for row, run_directory in zip(rows, run_directories, strict=True):
            target = directory / cell.run_directory(row).relative_to(cell.directory)
            target.mkdir(parents=True)
            for name in RUN_FILES:
                shutil.copyfile(run_directory / name, target / name)
            if (run_directory / WEIGHTS).is_file():
                shutil.copyfile(run_directory / WEIGHTS, target / WEIGHTS)
        pl.concat(
            pl.read_parquet(run_directory / "ranks.parquet").select(
                *(pl.lit(row[name]).alias(name) for name in ("variant", "dim", "seed")), "user_id", cs.starts_with("rank")
            )
            for row, run_directory in zip(rows, run_directories, strict=True)
        ).write_parquet(directory / "ranks.parquet")
        pl.DataFrame(rows, infer_schema_length=None).write_csv(directory / "metrics.csv")


def listed_cells(grid: Grid) -> list[Cell]:
    """Every cell that the grid's lists name, in their order: Table 2's, then variants, dims, and Table 2 again with tuning."""
    ablations, dimensions, tuning = grid.ablations, grid.dimensions, grid.tuning
    adapters = grid.adapters
    return [
        *(Cell(d, b, a) for d in grid.datasets for b in grid.backbones for a in grid.adapters),
        *(Cell(d, b, OURS, "variants") for d in ablations.datasets for b in ablations.backbones),
        *(Cell(d, b, a, "dims") for d in dimensions.datasets for b in dimensions.backbones for a in dimensions.adapters),
        *(Cell(d, b, a, "tuned", o) for d in tuning.datasets for b in tuning.backbones for o in tuning.losses for a in adapters),
    ]


def cell_of_stage(stage: str | None, grid: Grid) -> Cell:
    """The cell that a stage of grid/dvc.yaml makes. Raises UserError for a stage that the grid's lists do not name."""
    for cell in listed_cells(grid):
        if cell.stage.rpartition(":")[2] == stage:
            return cell
    raise UserError(f"the lists of `grid:` in params.yaml name no cell for DVC's stage {stage!r}")


def read_cells(cells: list[Cell], partial: bool = False) -> pl.DataFrame:
    """One row per run. Raises UserError naming the missing cells, unless `partial`; where there is none; for a damaged cell.

    Columns beside those of metrics.csv: `over`, what kind of cell it is from, and `run_directory`, where the run's files lie.
    """
    missing = [cell.name for cell in cells if not cell.exists]
    if missing and (not partial or len(missing) == len(cells)):
        raise UserError(
            f"{len(missing)} of {len(cells)} cells are missing ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); "
            "`dvc repro -k grid/dvc.yaml` trains them, `python -m stages.aggregate --partial` tabulates what there is"
        )
    frames = []
    for cell in cells:
        if cell.exists:
            frame = cell.read()
            run_directories = [str(cell.run_directory(row)) for row in frame.iter_rows(named=True)]
            frames.append(frame.with_columns(over=pl.lit(cell.over), run_directory=pl.Series(run_directories)))
    return pl.concat(frames, how="diagonal_relaxed")


def move_unlisted_cells(cells: list[Cell]) -> list[str]:
    """Move cells that the grid no longer lists into scratch, so that `grid/cells` is what the lists say; return their names."""
    kept = {cell.name for cell in cells}
    moved = []
    for directory in sorted(CELLS.glob("*")) if CELLS.is_dir() else []:
        if directory.is_dir() and directory.name not in kept:
            target = scratch() / "unlisted-cells" / directory.name
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_directory(target)
            shutil.move(directory, target)
            moved.append(directory.name)
    return moved
