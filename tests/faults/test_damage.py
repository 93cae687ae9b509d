"""Every artifact, damaged in five ways: the stage that reads it prints one line with the file, the damage and what to do."""

import ast
import contextlib
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from pipeline.grid import published
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training import loop
from tests.conftest import enter_copy

ROOT = Path(__file__).parents[2]
TRAINED = ("model.safetensors", "config.json", "history.csv", "training.json", "run.json")
TESTED = ("analysis.json", "ranks.parquet", "spectrum.csv")
SPECTRUM = [f"{folder}{name}.npy" for folder in ("", "centred/") for name in ("U", "sigma", "V", "mean")]
RUN = ".scratch/runs/*"
CELL = "grid/cells/tiny-sasrec-base"
RESULTS = "docs/results/here"

# The command that reads an artifact, what must be deleted before so that it does, the artifact, and its files without sidecar.
READERS: list[tuple[str, list[str], str, list[str]]] = [
    ("preprocess tiny", [], "data/raw/tiny", ["interactions.parquet", "items.parquet"]),
    ("embed tiny random", [], "data/sequences/tiny", ["items.parquet"]),
    ("svd tiny random", [], "data/embeddings/tiny/random", ["embeddings.npy"]),
    ("train", [".scratch"], "data/sequences/tiny", ["sequences.parquet", "items.parquet", "statistics.json"]),
    ("train", [".scratch"], "data/spectrum/tiny/random", SPECTRUM),
    ("train", [], RUN, [*TRAINED, *TESTED]),
    ("cell tiny sasrec base", [], RUN, [*TRAINED, *TESTED]),
    ("evaluate", [], "data/checkpoints/selected", ["model.safetensors", "config.json"]),
    ("evaluate", [], "data/sequences/tiny", ["sequences.parquet", "items.parquet"]),
    ("evaluate", [], "data/spectrum/tiny/random", SPECTRUM),
    ("compare", [], "metrics", ["evaluation.json"]),
    ("compare", [], "data/runs", ["evaluate-selected.json"]),
    ("compare", [], CELL, ["metrics.csv"]),
    ("aggregate", [], CELL, ["metrics.csv", "ranks.parquet"]),
    ("aggregate", [], f"{CELL}/seed-0", ["config.json", "training.json", "run.json", "history.csv", *TESTED[::2]]),
    ("aggregate", [], "data/sequences/tiny", ["sequences.parquet", "items.parquet", "statistics.json"]),
    ("publish here --restore", [CELL, ".scratch"], RESULTS, ["runs.csv", "tiny-sasrec-base.parquet", "users-tiny.parquet"]),
    ("results", [], RESULTS, ["groups.csv"]),
    ("publish here --restore", [CELL], ".scratch/published/*", [*TRAINED[1:], *TESTED]),
]
WITHOUT_SIDECAR = ("metrics", "data/runs", f"{CELL}/seed-0")
SHOWN = ("sidecar.json", "grid.yaml", "report.md", "comparisons.csv")
KINDS = ("flip", "truncate", "empty", "swap", "missing")


def cases() -> Iterator[object]:
    """All combinations of file and kind of damage; one per reader and artifact, with alternating kinds, is not slow."""
    for number, (command, gone, artifact, files) in enumerate(READERS):
        listed = files if artifact in WITHOUT_SIDECAR else [*files, "sidecar.json"]
        sample = (listed[number % len(listed)], KINDS[number % len(KINDS)])
        for file in listed:
            for kind in KINDS:
                marks = [] if (file, kind) == sample else [pytest.mark.slow]
                yield pytest.param(
                    command, gone, f"{artifact}/{file}", kind, marks=marks, id=f"{command}-{artifact}/{file}-{kind}"
                )


@pytest.fixture(scope="session")
def whole(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project after every stage, with a published grid of one cell whose run is unpacked."""
    root = tmp_path_factory.mktemp("whole") / "project"
    shutil.copytree(tiny_project, root)
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPECTRAN_SCRATCH", raising=False)
        text = Path("params.yaml").read_text()
        text = (
            text.replace("  - base\n  - spectran\n", "  - base\n")
            .replace("  - 0\n  - 1\n", "  - 0\n")
            .replace("epochs: 4", "epochs: 2")
        )
        Path("params.yaml").write_text(text)
        assert load_params().grid.adapters == ["base"]
        for command in ("train", "evaluate", "cell tiny sasrec base", "aggregate", "compare"):
            stage(command, patch)
        patch.setattr(import_module("pipeline.report.publishing"), "committed_code", lambda: "0123456789")
        stage("publish here", patch)
        Path("README.md").write_text('<!-- results:\ngroups/here/tail NDCG@20 "Tail"\n-->\n<!-- end of results -->\n')
        for name in ("results.md", "results-details.md", "research.md"):
            Path("docs", name).write_text("no table\n")
        shutil.move(".scratch/runs", "runs")
        shutil.move(CELL, "cell")
        published._published.cache_clear()
        stage("publish here --restore", patch)
        shutil.rmtree(CELL)
        shutil.move("cell", CELL)
        shutil.move("runs", ".scratch/runs")
    return root


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Restore torch's settings, because training makes its process use deterministic kernels."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def stage(command: str, patch: pytest.MonkeyPatch) -> str:
    """Run a stage in this process."""
    name, *arguments = command.split()
    patch.setattr(sys, "argv", [name, *arguments])
    return import_module(f"stages.{name}").main()


def there(pattern: str) -> Path:
    (found,) = Path().glob(pattern)
    return found


def damage(file: Path, kind: str) -> None:
    """Damage a file: flip a bit in the middle, truncate it to a half, empty it, replace it by another file, or remove it."""
    content = bytearray(file.read_bytes())
    if kind == "missing":
        file.unlink()
        return
    if kind == "flip":
        content[len(content) // 2] ^= 1
    if kind == "swap":
        others = [*sorted(Path().rglob(f"*{file.suffix}")), *sorted(Path().rglob("*.json"))]  # of the same format if there is one
        content = bytearray(next(other for path in others if (other := path.read_bytes()) != content))
    file.write_bytes({"truncate": content[: len(content) // 2], "empty": b""}.get(kind, content))


@pytest.fixture
def copied(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    published._published.cache_clear()
    return enter_copy(whole, tmp_path, monkeypatch)


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(("command", "gone", "pattern", "kind"), list(cases()))
def test_a_damaged_file_is_one_line(
    command: str, gone: list[str], pattern: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in gone:
        shutil.rmtree(folder)
    file = there(pattern)
    damage(file, kind)
    if (pattern.split("/")[0], file.name, kind) == (".scratch", "sidecar.json", "missing"):
        stage(command, monkeypatch)  # without a sidecar, a run counts as interrupted and is trained again
        assert file.is_file() or command.startswith("cell"), "a cell takes it from what is published"
        return
    with pytest.raises(UserError) as caught:
        stage(command, monkeypatch)
    line = str(caught.value)
    assert "\n" not in line
    assert str(file) in line or (file.name == "sidecar.json" and str(file.parent) in line), line
    assert any(word in line for word in ("is missing", "is damaged", "is not valid JSON", "belongs elsewhere")), line
    assert "`" in line or "running the same command again" in line, f"names no command: {line}"


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("content", [b"[]", b"null", b'"text"', b"{}", b"\xff", b"[" * 100_000, b'{"files": {}}', b'{"a": NaN}'])
@pytest.mark.parametrize("command", ["preprocess tiny", "train", "evaluate"])
def test_a_sidecar_of_another_form_is_one_line(command: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = {"preprocess": "data/raw/tiny", "train": RUN, "evaluate": "data/checkpoints/selected"}[command.split()[0]]
    sidecar = there(f"{artifact}/sidecar.json")
    sidecar.write_bytes(content)
    with pytest.raises(UserError, match=r"sidecar.json is (damaged|not valid JSON)") as caught:
        stage(command, monkeypatch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", sorted({command for command, *_ in READERS} - {"embed tiny random"}))
def test_what_is_whole_is_read(copied: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.startswith("publish"):
        shutil.rmtree(CELL)
    stage(command, monkeypatch)
    assert copied.is_dir()


@pytest.mark.usefixtures("copied")
def test_every_file_of_every_artifact_is_damaged_above() -> None:
    """All files that a sidecar covers, except the weights in a cell, which no stage reads, and the comparisons of adapters, which
    are none in a grid of one adapter: test_leaders.py damages them."""
    covered = {file for _, _, artifact, files in READERS for name in files for file in Path().glob(f"{artifact}/{name}")}
    for sidecar in Path().rglob("sidecar.json"):
        for file in sidecar.parent.rglob("*"):
            if file.is_file() and file.suffix != ".svg" and file.name not in SHOWN:
                assert file in covered or (file.parent == Path(CELL, "seed-0") and file.name == "model.safetensors"), file


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_an_unfinished_run_is_used_whole_or_not_at_all(
    copied: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training resumes after the last epoch or starts again; the weights are the same."""
    weights = there(f"{RUN}/model.safetensors").read_bytes()
    shutil.rmtree(".scratch/runs")
    run = Run.of(load_params())
    save, saved = loop._save, []

    def interrupted(*arguments: object) -> None:
        save(*arguments)
        saved.append(run.name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage("train", patch)
    state = there(".scratch/unfinished/*/state.pt")
    if kind == "swap":
        other = state.parents[1] / "other/state.pt"
        shutil.copytree(state.parent, other.parent)
        with monkeypatch.context() as patch:  # its seal is for its own path
            patch.setattr(loop, "_unfinished", lambda run: other)
            patch.setattr(loop, "_save", interrupted)
            patch.setattr(loop, "_resumed", lambda run, steps: loop.Progress())
            with pytest.raises(KeyboardInterrupt):
                stage("train", patch)
        shutil.copyfile(other, state)
    else:
        damage(state, kind)
    stage("train", monkeypatch)
    assert there(f"{RUN}/model.safetensors").read_bytes() == weights
    assert ("is damaged; training starts again" in capsys.readouterr().err) == (kind != "missing")
    assert copied.is_dir()


READING = ("read_parquet", "scan_parquet", "read_csv", "read_csv_table", "load_file", "read_json", "open_array")
LOADERS = {"np": "load", "torch": "load"}
CHECKING = {"verify", "check_seal", "read_signed"}
UNCHECKED = {
    "pipeline/artifacts.py": "defines the checks",
    "pipeline/data/sources/files.py": "the user's own files, which have no checksum",
    "pipeline/data/sources/__init__.py": "read by the preprocess stage, which checks the directory first",
    "pipeline/data/tables.py": "the user's own files, which have no checksum",
    "pipeline/data/text_tables.py": "the user's own files, which have no checksum",
    "pipeline/doctor.py": "prints what it finds and decides no number",
    "pipeline/embedding/encoder.py": "files of a model's publisher",
    "pipeline/embedding/pretrained.py": "files of a model's publisher, whose checksums the embedding's sidecar has",
    "pipeline/embedding/spectrum.py": "read by the svd stage, which checks the directory first",
    "pipeline/evaluation/summary.py": "read from what `evaluated` has checked",
    "pipeline/grid/tables.py": "reads what its callers have checked",
    "pipeline/grid/tuning.py": "trials of scratch; a choice is compared with its trials and the space",
    "pipeline/report/blocks.py": "published reports and figures, in git; the runs are read by `read_runs`, which checks them",
    "pipeline/report/candidate.py": "read from cells that `Cell.read` has checked",
    "pipeline/report/conclusions.py": "read from cells that `Cell.read` has checked",
    "pipeline/report/decision.py": "read from cells and baselines that `Cell.read` and `read_baselines` have checked",
    "pipeline/report/dropped.py": "sentences beside the sequences, which decide no number",
    "pipeline/report/figures.py": "read from cells that `Cell.read` has checked",
    "pipeline/report/captions.py": "read from cells that `Cell.read` has checked",
    "pipeline/report/overviews.py": "read from cells that `Cell.read` has checked",
    "pipeline/report/paper.py": "tables of the paper, in git",
    "pipeline/report/sections.py": "read from cells that `Cell.read` has checked",
    "pipeline/report/table_data.py": "read from cells that `Cell.read` has checked",
    "pipeline/report/users.py": "read from cells that `Cell.read` has checked",
    "stages/check.py": "sentences beside the sequences, which decide no number",
    "pipeline/serving/requests.py": "the user's requests, which have no checksum",
    "stages/evaluate.py": "read from what `load_checkpoint` has checked",
    "stages/scan.py": "its own record of checksums, in git",
    "stages/train.py": "read from what `trained` has checked",
}


def test_whoever_reads_an_artifact_checks_it() -> None:
    """Every module that reads files without checking them is listed above, with the reason."""
    found = set()
    for file in (*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/*.py")):
        names = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func
                names |= {called.id} if isinstance(called, ast.Name) else set()
                if isinstance(called, ast.Attribute):
                    owner = called.value.id if isinstance(called.value, ast.Name) else ""
                    names |= {f"{owner}.load"} if LOADERS.get(owner) == called.attr else {called.attr}
        if names & {*READING, *(f"{owner}.load" for owner in LOADERS)} and not names & CHECKING:
            found.add(file.relative_to(ROOT).as_posix())
    assert found <= set(UNCHECKED), f"{sorted(found - set(UNCHECKED))}: read an artifact without `verify`"


def test_nothing_is_unpickled() -> None:
    for file in (
        *ROOT.glob("common/**/*.py"),
        *ROOT.glob("models/**/*.py"),
        *ROOT.glob("pipeline/**/*.py"),
        *ROOT.glob("stages/*.py"),
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                options = {option.arg: getattr(option.value, "value", None) for option in node.keywords}
                assert owner != "torch" or options.get("weights_only") is True, file
                assert owner != "np" or options.get("allow_pickle") is False, file
                assert owner not in ("pickle", "yaml"), file
