"""Results are published with committed code, and restored under the settings that they were made with."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from pipeline.artifacts import SIDECAR, read_json, verify
from pipeline.grid.cells import Cell
from pipeline.grid.execution import build_cell
from pipeline.grid.published import publish
from pipeline.params import load_params
from pipeline.report import publishing
from pipeline.report.publishing import committed_code, publish_grid, restore_grid
from pipeline.report.write import write_report
from tests.pipeline.conftest import FOLDER
from tests.sign import sign


def test_code_that_is_not_committed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="git finds no commit here"):
        committed_code()
    file = Path("pipeline/training/loop.py")
    file.parent.mkdir(parents=True)
    file.write_text("a = 1\n")
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert head.startswith(committed_code())
    Path("notes.md").write_text("other files may differ\n")
    assert head.startswith(committed_code())
    Path(".gitignore").write_text("__pycache__/\nmine.py\n")
    cached = Path("models/__pycache__/mine.pyc")
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert head.startswith(committed_code())
    for new in ("models/adapters/other.py", "stages/new.py", "common/text.txt", "models/adapters/mine.py"):
        Path(new).parent.mkdir(parents=True, exist_ok=True)
        Path(new).touch()
        with pytest.raises(UserError, match=rf"\({new}\); commit it first"):
            committed_code()
        Path(new).unlink()
    file.write_text("a = 2\n")
    with pytest.raises(UserError, match=r"\(pipeline/training/loop.py\); commit it first"):
        committed_code()
    subprocess.run([*git, "add", "."], check=True)
    with pytest.raises(UserError, match=r"\(pipeline/training/loop.py\); commit it first"):
        committed_code()


def test_without_the_program_git_one_line_says_that_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^the program git is missing on this machine; install it, then publish from a clone$"):
        committed_code()


def test_the_report_that_is_published_is_of_the_cells_that_are(
    cells: list[Cell], set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a report of older cells; cells with other settings are named in the error."""
    monkeypatch.setattr(publishing, "committed_code", lambda: "0123456789")
    Path("metrics").mkdir()
    Path("metrics/report.md").write_text("of older cells")
    publish_grid(FOLDER, load_params())
    report = (FOLDER / "report.md").read_text()
    mean = pl.read_csv(FOLDER / "runs.csv").filter(adapter="base", over="seeds")["NDCG@20"].mean()
    assert f"{mean:.4f}" in report
    assert (FOLDER / "figures/comparison.svg").is_file()
    verify(FOLDER, "publish")
    set_params({"train.patience": 1})
    build_cell(cells[0], load_params())
    with pytest.raises(UserError, match=r"tiny-sasrec-spectran, .*-dims was built with other settings or data than those here"):
        publish_grid(FOLDER, load_params())
    assert (FOLDER / "report.md").read_text() == report


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_publishing_that_stops_in_the_middle_changes_nothing(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """At writes of each kind, there is no room left; then it publishes, and nothing of what was there before stays."""
    monkeypatch.setattr(publishing, "committed_code", lambda: "1111111111")
    (FOLDER / "tiny-sasrec-older.parquet").touch()  # of a cell that was published before
    sign(FOLDER)
    before = everything(FOLDER)
    written: list[Path] = []
    written_until: list[int] = [0]
    write_parquet, write_csv, write_bytes = pl.DataFrame.write_parquet, pl.DataFrame.write_csv, Path.write_bytes

    def failing(write: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*arguments: object, **options: object) -> object:
            target = next((argument for argument in arguments[:2] if isinstance(argument, Path)), None)
            if target is not None and "docs" in target.parts:
                written.append(target)
                if len(written) > written_until[0]:
                    raise OSError(28, "No space left on device", str(target))
            return write(*arguments, **options)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", failing(write_parquet))
        patch.setattr(pl.DataFrame, "write_csv", failing(write_csv))
        patch.setattr(Path, "write_bytes", failing(write_bytes))
        reported = write_report(load_params(), partial=True)
        patch.setattr(publishing, "write_report", lambda *arguments, **options: reported)  # which takes most of the time
        # Eleven writes: three cells, the users and runs.csv; then lists, comparisons, groups, report and figures.
        for until in (0, 3, 4, 5, 6, 10):
            written.clear()
            written_until[0] = until
            with pytest.raises(OSError, match="No space left"):
                publish_grid(FOLDER, load_params())
            assert len(written) == until + 1
            assert everything(FOLDER) == before
            assert list(Path("docs").iterdir()) == [FOLDER.parent], "nothing half-written is left"
    publish_grid(FOLDER, load_params())
    verify(FOLDER, "publish")
    after = everything(FOLDER)
    assert "tiny-sasrec-older.parquet" not in after
    assert read_json(FOLDER / SIDECAR, "publish")["files"].keys() == after.keys() - {SIDECAR}


@pytest.mark.parametrize("name", ["notes.md", "figures/notes.md", "tuned/notes.md", "notes.parquet", "mine/notes.md"])
def test_a_file_of_ones_own_in_the_folder_is_not_lost(cells: list[Cell], name: str) -> None:
    (FOLDER / name).parent.mkdir(exist_ok=True)
    (FOLDER / name).write_text("mine")
    before = everything(FOLDER)
    params = load_params()
    with pytest.raises(UserError, match=rf"^docs/results/here is replaced whole and holds {name}, which publishing did not"):
        publish([(cell, cell.runs(params)) for cell in cells], FOLDER, "0123456789")
    assert everything(FOLDER) == before


@pytest.mark.parametrize("sidecar", ["older", "missing", "of another folder"])
def test_a_folder_whose_sidecar_does_not_list_its_files_is_replaced(cells: list[Cell], sidecar: str) -> None:
    """Older versions listed runs and ranks only; one that git merged or that was copied lists nothing that counts."""
    params = load_params()
    for name in ("grid.yaml", "report.md", "figures/forest.svg"):
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text("older")
    if sidecar == "missing":
        (FOLDER / SIDECAR).unlink()
    elif sidecar == "of another folder":
        (FOLDER / SIDECAR).write_text((FOLDER / SIDECAR).read_text().replace("runs.csv", "other.csv"))
    (FOLDER / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"^docs/results/here is replaced whole and holds notes.md, which publishing did not"):
        publish([(cell, cell.runs(params)) for cell in cells], FOLDER, "0123456789")
    (FOLDER / "notes.md").unlink()
    publish([(cell, cell.runs(params)) for cell in cells], FOLDER, "0123456789")
    assert not (FOLDER / "report.md").exists()


def test_results_are_restored_under_the_preprocessing_and_encoder_that_they_were_made_with(
    cells: list[Cell], set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in a cell says how ties of time were ordered, so its table would stand under the wrong rule."""
    monkeypatch.setattr(publishing, "committed_code", lambda: "0123456789")
    publish_grid(FOLDER, load_params())
    shutil.rmtree("grid/cells")
    before = Path("params.yaml").read_bytes()
    for changed, says in [
        ({"preprocess.ties": "item"}, "preprocess.ties shuffled, params.yaml item"),
        ({"preprocess.core": 7}, "preprocess.core 5, params.yaml 7"),
        ({"encoder": "minilm"}, "encoder random, params.yaml minilm"),
    ]:
        set_params(changed)
        other = Path("params.yaml").read_bytes()
        with pytest.raises(UserError, match=f"docs/results/here/grid.yaml is for {says}; change params.yaml first"):
            restore_grid(FOLDER)
        assert Path("params.yaml").read_bytes() == other
        assert not Path("grid/cells").exists()
        Path("params.yaml").write_bytes(before)
    assert "3 cells of docs/results/here in grid/cells" in restore_grid(FOLDER)
    assert cells[0].differs(load_params()) == ""
    set_params({"evaluate.exclude_history": True})
    assert cells[0].differs(load_params()) == "evaluate.exclude_history False, now True", "their metrics rank all items"
