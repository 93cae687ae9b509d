"""A run's fingerprint and DVC's stages cover the same code, which is all code that decides numbers."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.code import python_files
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.losses import LOSSES
from pipeline.grid.held_out import COLD_CODE
from pipeline.params import load_params
from pipeline.runs import EVALUATION_CODE, TRAINING_CODE, Run
from stages import aggregate, baselines, compare, package

ROOT = Path(__file__).parents[2]
OWN = ("models/adapters/${adapter}.py", "models/backbones/${backbone}.py", "models/losses/${loss}.py")
SHARED = "models/adapters/whitenrec.py"  # the only adapter that another one, SpecMLP, imports

# Modules that training or evaluation import and that may change without a run being trained again, each with the reason.
HARMLESS = {
    "common/": "refuses bad input; what it reads is in the fingerprint by value",
    "models/__init__.py": "empty",
    "models/adapters/__init__.py": "names and titles; an adapter's code is the file of its name",
    "models/backbones/__init__.py": "names and titles; a backbone's code is the file of its name",
    "models/losses/__init__.py": "names and titles; a loss's code is the file of its name",
    "pipeline/__init__.py": "empty",
    "pipeline/data/__init__.py": "names of sources; what they bring reaches a run through its inputs",
    "pipeline/artifacts.py": "reads and writes whole files, checked by their checksums",
    "pipeline/params.py": "its values are in the fingerprint, defaults included",
    "pipeline/runs.py": "makes the fingerprint: another choice of inputs is another fingerprint",
    "pipeline/texts.py": "decides the texts, which reach a run through its embeddings",
}


def stage(file: str, name: str) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"][name]
    return found.get("do", found)


def code_of(stage: dict[str, Any]) -> set[str]:
    """Return the code that a stage depends on, with placeholders, but without their prefixes `item.` and `train.`."""
    deps = {dep.replace("item.", "").replace("train.", "") for dep in stage.get("deps", [])}
    return {dep for dep in deps if dep.startswith(("models/", "pipeline/"))}


def test_train_depends_on_the_code_that_decides_a_runs_weights() -> None:
    assert code_of(stage("dvc.yaml", "train")) == {*TRAINING_CODE, *OWN, SHARED}


@pytest.mark.parametrize(
    ("file", "name", "code"),
    [
        ("dvc.yaml", "aggregate", compare.CODE),
        ("grid/dvc.yaml", "aggregate", aggregate.CODE),
        ("grid/dvc.yaml", "baselines", baselines.CODE),
        ("serving/dvc.yaml", "package", package.CODE),
    ],
)
def test_a_stage_watches_the_code_that_dvc_compares(file: str, name: str, code: tuple[str, ...]) -> None:
    assert code_of(stage(file, name)) == set(code)


def test_a_method_that_imports_another_has_its_code_in_the_fingerprint() -> None:
    for registry in (ADAPTERS, BACKBONES, LOSSES):
        for name in registry:
            folder = Path(registry.file(name)).parent
            others = {
                file for file in imports(registry.file(name)) if Path(file).parent == folder and Path(file).stem in registry
            }
            assert others == ({SHARED} if name == "spec_mlp" else set())
            if registry is ADAPTERS:
                assert others <= set(Run.of(load_params(ROOT / "params.yaml"), adapter=name).code)


@pytest.mark.parametrize("name", ["cell", "dimension", "ablation", "tuned"])
def test_a_cell_depends_on_that_and_on_the_evaluation(name: str) -> None:
    code = {file.replace("spectran.py", "${adapter}.py") for file in code_of(stage("grid/dvc.yaml", name))}
    assert code - {SHARED} == {*TRAINING_CODE, *OWN, *EVALUATION_CODE}
    assert (SHARED in code) == (name != "ablation")


def test_preprocess_depends_on_the_code_that_decides_the_sequences_and_what_is_said_of_them() -> None:
    listed = code_of(stage("data/dvc.yaml", "preprocess"))
    needed = reached(["pipeline/data/interactions.py", "pipeline/data/dropped.py"])
    assert {file for file in needed if file.startswith("pipeline/data/")} <= listed


def test_evaluate_depends_on_its_code() -> None:
    assert {*EVALUATION_CODE, *TRAINING_CODE} <= code_of(stage("dvc.yaml", "evaluate"))


def imports(file: str) -> set[str]:
    """Return the project's files that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = Path(name.replace(".", "/"))
            candidates = (path.with_suffix(".py"), *(parent / "__init__.py" for parent in (path, *path.parents)))
            found |= {each.as_posix() for each in candidates if (ROOT / each).is_file()}
    return found


def reached(start: list[str]) -> set[str]:
    """Return all files that `start` imports, directly or indirectly."""
    seen: set[str] = set()
    waiting = list(start)
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += imports(file)
    return seen


def test_no_module_that_training_or_evaluation_imports_is_outside() -> None:
    """If a module that decides numbers were in no list, results of older code would count as current."""
    start = python_files(ROOT, [*TRAINING_CODE, *EVALUATION_CODE, "models/adapters", "models/backbones", "models/losses"])
    listed = set(start)
    outside = {file for file in reached(start) - listed if not file.startswith(tuple(HARMLESS))}
    assert not outside, f"{sorted(outside)}: list them in pipeline/runs.py and the DVC files, or say in HARMLESS why not"


def test_figures_of_held_out_items_depend_on_all_code_of_serving_that_measures_them() -> None:
    used = {file for file in reached(["pipeline/serving/cold.py"]) if file.startswith("pipeline/serving/")}
    assert used - {"pipeline/serving/__init__.py"} <= {*COLD_CODE}
    assert {*COLD_CODE} <= code_of(stage("grid/dvc.yaml", "aggregate"))


def test_nothing_is_called_harmless_in_vain() -> None:
    files = reached(python_files(ROOT, [*TRAINING_CODE, *EVALUATION_CODE]))
    for entry in HARMLESS:
        assert any(file.startswith(entry) for file in files), entry


GRID = {
    "cell": {"grid.dim"},
    "dimension": {"grid.dimensions.dims"},
    "ablation": {"grid.dim", "grid.ablations.variants"},
    "tuned": {"grid.dim", "grid.tuning.trials", "grid.tuning.seed"},
}


@pytest.mark.parametrize(("file", "name"), [("dvc.yaml", "train"), *(("grid/dvc.yaml", name) for name in GRID)])
def test_train_and_cell_name_every_parameter_that_a_run_reads(file: str, name: str) -> None:
    listed = [param for param in stage(file, name)["params"] if isinstance(param, str)]
    read = {param.replace("item.", "").replace(".spectran", ".${adapter}") for param in listed}
    assert {"encoder", "train", "backbones.${backbone}", "adapters.${adapter}"} <= read
    names = {"dataset", "backbone", "adapter", "dim", "seed"}
    chosen = {*names, "evaluate.similarity"} if name == "train" else {"grid.seeds", "evaluate", *GRID[name]}
    assert chosen <= read
    assert name != "train" or "evaluate" not in read, "other cutoffs, and whether history is ranked, train nothing again"
    assert not read & {"download", "sources", "preprocess"}, "those reach a run through its inputs"


@pytest.mark.parametrize("file", ["dvc.yaml", "data/dvc.yaml", "grid/dvc.yaml"])
def test_all_code_that_a_stage_depends_on_exists(file: str) -> None:
    stages = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"]
    for name in stages:
        for dep in code_of(stage(file, name)):
            if "$" not in dep:
                assert (ROOT / dep).exists(), f"{file}:{name}: {dep}"


def test_every_kind_of_source_has_the_file_that_data_dvc_depends_on() -> None:
    for source in load_params(ROOT / "params.yaml").sources.values():
        assert (ROOT / f"pipeline/data/sources/{source.kind}.py").is_file()


def test_a_run_reads_the_sections_of_its_own_adapter_and_backbone() -> None:
    params = load_params(ROOT / "params.yaml")
    run = Run.of(params, adapter="spectran", dim=32, seed=4)
    assert (run.dataset, run.adapter, run.dim, run.seed) == (params.dataset, "spectran", 32, 4)
    assert run.settings == {
        "train": params.train.model_dump(),
        "backbone": params.backbones["sasrec"],
        "adapter": params.adapters["spectran"],
        "evaluate": {"similarity": "cosine"},
    }
