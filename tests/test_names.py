"""Names from params.yaml and the command line become parts of paths. No name can run a command or lead out of its folder."""

import ast
import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import UserError
from pipeline.artifacts import atomic_directory, remove_directory
from tests.clone import Project, copy_repository, write_params
from tests.common.test_names import HOSTILE

# A shorter list for tests that start DVC for every name.
SAMPLE = ["../../../../victim", "x; touch PWNED; #", "$(touch PWNED)", "'; touch PWNED; '", "x\ntouch PWNED\n#", "my.shop"]
SECTIONS = {"dataset": "sources", "encoder": "encoders", "backbone": "backbones", "adapter": "adapters"}

Change = Callable[[dict[str, Any], str], None]


def select(kind: str) -> Change:
    """Add a section under the hostile name, a copy of the selected one, and select it."""

    def change(params: dict[str, Any], name: str) -> None:
        section = params[SECTIONS[kind]]
        section[name] = section[params[kind]]
        params[kind] = name

    return change


def list_in_grid(kind: str) -> Change:
    def change(params: dict[str, Any], name: str) -> None:
        section = params[SECTIONS[kind]]
        section[name] = section[params[kind]]
        params["grid"][f"{kind}s"] = [name]

    return change


ENTRANCES: dict[str, Change] = {
    **{f"selected {kind}": select(kind) for kind in SECTIONS},
    **{f"grid {kind}": list_in_grid(kind) for kind in ("dataset", "backbone", "adapter")},
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", HOSTILE)
def test_params_refuse_a_hostile_name(project: Path, name: str, entrance: str) -> None:
    from pipeline.params import load_params

    params = yaml.safe_load((project / "params.yaml").read_text())
    params["encoder"], params["dataset"] = "random", "tiny"
    ENTRANCES[entrance](params, name)
    write_params(project, params)
    with pytest.raises(UserError) as refused:
        load_params()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("stage", ["download", "preprocess", "embed", "svd", "cell", "tune", "publish"])
def test_a_command_line_refuses_a_hostile_name(project: Path, stage: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    arguments = {"cell": ["sasrec", "base"], "tune": ["sasrec", "base", "info_nce"]}.get(stage, [])
    monkeypatch.setattr(sys, "argv", [stage, "--", name, *arguments])
    before = snapshot(project)
    with pytest.raises((UserError, SystemExit)):
        import_module(f"stages.{stage}").main()
    assert snapshot(project) == before


@pytest.mark.parametrize(
    "target", ["..", "../..", ".", "data", "data/raw/..", "models", "/", "../victim", "data/raw/../../stages"]
)
def test_only_directories_of_artifacts_are_replaced(project: Path, target: str) -> None:
    victim = project.parent / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    before = snapshot(project)
    with pytest.raises(UserError, match="is not replaced"), atomic_directory(Path(target)):
        raise AssertionError("the block must not start")
    with pytest.raises(UserError, match="is not replaced"):
        remove_directory(Path(target))
    assert snapshot(project) == before
    assert (victim / "kept").exists()


def test_a_link_that_leads_out_of_the_project_is_not_followed(project: Path) -> None:
    victim = project.parent / "victim"
    victim.mkdir()
    (project / "data/raw/linked").symlink_to(victim)
    with pytest.raises(UserError, match="is not replaced"), atomic_directory(Path("data/raw/linked")):
        raise AssertionError("the block must not start")
    assert victim.is_dir()


def snapshot(root: Path) -> dict[str, str]:
    files = (file for file in sorted(root.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Project:
    base = tmp_path_factory.mktemp("names")
    root = base / "a/b/project"
    write_params(root, copy_repository(root))
    (base / "victim").mkdir()
    (base / "victim/kept").write_text("kept")
    project = Project(root)
    project.run("git", "init", "-q")
    project.commit()
    return project


def try_with_dvc(clone: Project, name: str, entrance: str) -> None:
    """Run the data stages, the selected run and the grid with a params.yaml that has a hostile name."""
    params = yaml.safe_load((clone.root / "params.yaml").read_text())
    ENTRANCES[entrance](params, name)
    write_params(clone.root, params)
    try:
        for command in (["dvc", "repro", "--keep-going", "grid/dvc.yaml"], ["dvc", "repro"], ["dvc", "exp", "run", "evaluate"]):
            printed = clone.run(*command, fails=True)
            assert "Traceback" not in printed
        changed = clone.run("git", "status", "--porcelain", "--untracked-files=all").split()
        assert set(changed) <= {"M", "params.yaml", "??", "dvc.lock", "data/dvc.lock", "grid/dvc.lock"}
        assert not list(clone.root.parents[2].rglob("PWNED"))
        assert (clone.root.parents[2] / "victim/kept").exists()
    finally:
        clone.run("git", "checkout", "-q", ".")


@pytest.mark.xdist_group("names")
@pytest.mark.parametrize(
    ("name", "entrance"),
    [
        ("x; touch PWNED; #", "selected dataset"),
        ("x/../../../pipeline", "grid adapter"),
    ],
)
def test_dvc_runs_nothing_and_removes_nothing(clone: Project, name: str, entrance: str) -> None:
    try_with_dvc(clone, name, entrance)


@pytest.mark.slow
@pytest.mark.xdist_group("names")
@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", SAMPLE)
def test_dvc_runs_nothing_and_removes_nothing_at_any_entrance(clone: Project, name: str, entrance: str) -> None:
    try_with_dvc(clone, name, entrance)


@pytest.mark.xdist_group("names")
@pytest.mark.slow
def test_every_shipped_name_can_be_selected(clone: Project) -> None:
    """`dvc repro --dry` resolves every stage of the run. DVC splits keys at dots, so a name with a dot would fail."""
    params = yaml.safe_load((clone.root / "params.yaml").read_text())
    names = {kind: list(params[section]) for kind, section in SECTIONS.items()}
    clone.run("dvc", "repro", "validate")
    try:
        for i in range(max(map(len, names.values()))):
            chosen = params | {kind: listed[i % len(listed)] for kind, listed in names.items()}
            write_params(clone.root, chosen)
            dataset, encoder = chosen["dataset"], chosen["encoder"]
            # A dry run looks for the inputs of each stage, which the stage before it has not made.
            for path in (f"raw/{dataset}/a", f"sequences/{dataset}/items.parquet", f"embeddings/{dataset}/{encoder}/a"):
                (clone.root / "data" / path).parent.mkdir(parents=True, exist_ok=True)
                (clone.root / "data" / path).touch()
            for folder in (f"spectrum/{dataset}/{encoder}", "checkpoints/selected"):
                (clone.root / "data" / folder).mkdir(parents=True, exist_ok=True)
            stages = [f"data/dvc.yaml:{stage}@{dataset}" for stage in ("download", "preprocess", "embed", "svd")]
            printed = clone.run("dvc", "repro", "--dry", "--single-item", *stages, "train", "evaluate")
            assert clone.ran(printed) == [*(stage.partition(":")[2] for stage in stages), "train", "evaluate"], chosen
    finally:
        clone.run("git", "checkout", "-q", ".")
        shutil.rmtree(clone.root / "data/checkpoints")


def test_no_command_of_a_pipeline_file_holds_a_name() -> None:
    """DVC splits a command at newlines even inside quotes, so no quoting is safe: scripts read their names from $DVC_STAGE."""
    root = Path(__file__).parents[1]
    for file in ("dvc.yaml", "data/dvc.yaml", "grid/dvc.yaml", "serving/dvc.yaml"):
        stages = yaml.safe_load((root / file).read_text())["stages"]
        for name, stage in stages.items():
            body = stage.get("do", stage)
            assert "$" not in body["cmd"], f"{file}: {name}"
            assert name == "validate" or "data/validated.json" in body["deps"], f"{file}: {name} runs before names are checked"


def test_quotes_would_not_be_enough() -> None:
    """For DVC, a newline inside quotes starts another command."""
    from dvc.stage.run import _enforce_cmd_list

    assert _enforce_cmd_list("python -m stages.download 'x\ntouch PWNED\n#'")[1] == "touch PWNED"


GLOBBING = {f"pl.{how}_{what}" for how in ("read", "scan") for what in ("csv", "parquet", "parquet_schema")}
CHECKED = {  # read only paths of checked names, relative to the project or in scratch
    "pipeline/evaluation/summary.py",
    "pipeline/data/sources/__init__.py",
    "pipeline/training/sequences.py",
}


def test_polars_never_takes_a_path_for_a_glob() -> None:
    """Else `req [1].parquet` would read `req 1.parquet`, and nothing could be read in a folder with brackets in its name."""
    root = Path(__file__).parents[1]
    found = set()
    for file in (file for folder in ("common", "models", "pipeline", "stages") for file in root.glob(f"{folder}/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in GLOBBING:
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                if options.get("glob") != "False":
                    found.add(file.relative_to(root).as_posix())
    assert found == CHECKED, f"{sorted(found ^ CHECKED)}: read with `glob=False`; pl.scan_parquet has the schema too"
