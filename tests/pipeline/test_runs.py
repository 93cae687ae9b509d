"""What a run's fingerprint covers is what DVC's stages depend on, in both directions."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from pipeline.params import load_params
from pipeline.runs import CODE, EVALUATION, Run, module_file

ROOT = Path(__file__).parents[2]


def stage(file: str, name: str) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"][name]
    return found.get("do", found)


def code_of(stage: dict[str, Any]) -> set[str]:
    """Python files that a stage depends on, placeholders as they are; `item.` is only where a value comes from."""
    return {dep.replace("item.", "") for dep in stage.get("deps", []) if dep.endswith(".py")}


NAMED = {"models/adapters/${adapter}.py", "models/backbones/${backbone}.py"}


def test_train_depends_on_the_code_that_decides_a_runs_numbers() -> None:
    assert code_of(stage("dvc.yaml", "train")) == {*CODE, *NAMED}


@pytest.mark.parametrize("name", ["cell", "dimension", "ablation", "tuned"])
def test_a_cell_depends_on_that_and_on_the_evaluation(name: str) -> None:
    code = {file.replace("spectran.py", "${adapter}.py") for file in code_of(stage("grid/dvc.yaml", name))}
    assert code == {*CODE, *NAMED, *EVALUATION}


def test_evaluate_depends_on_its_code() -> None:
    assert {*EVALUATION, "pipeline/metrics.py"} <= code_of(stage("dvc.yaml", "evaluate"))


GRID = {
    "cell": {"grid.dim"},
    "dimension": {"grid.dimensions.dims"},
    "ablation": {"grid.dim", "grid.ablations.variants"},
    "tuned": {"grid.dim"},
}


@pytest.mark.parametrize(("file", "name"), [("dvc.yaml", "train"), *(("grid/dvc.yaml", name) for name in GRID)])
def test_train_and_cell_name_every_parameter_that_a_run_reads(file: str, name: str) -> None:
    read = {param.replace("item.", "").replace(".spectran", ".${adapter}") for param in stage(file, name)["params"]}
    assert {"encoder", "train", "backbones.${backbone}", "adapters.${adapter}"} <= read
    chosen = {"dataset", "backbone", "adapter", "dim", "seed"} if name == "train" else {"grid.seeds", "evaluate", *GRID[name]}
    assert chosen <= read
    assert not read & {"download", "sources", "preprocess"}, "those reach a run through its inputs"


@pytest.mark.parametrize("file", ["dvc.yaml", "data/dvc.yaml", "grid/dvc.yaml"])
def test_every_code_file_that_a_stage_depends_on_exists(file: str) -> None:
    stages = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"]
    for name in stages:
        for dep in code_of(stage(file, name)):
            if "$" not in dep:
                assert (ROOT / dep).is_file(), f"{file}:{name}: {dep}"


@pytest.mark.parametrize("registry", [ADAPTERS, BACKBONES], ids=["adapters", "backbones"])
def test_a_registered_name_is_the_name_of_its_file(registry: dict[str, str]) -> None:
    """dvc.yaml depends on models/adapters/${adapter}.py."""
    for name, entry in registry.items():
        assert Path(module_file(entry)).stem == name
        assert (ROOT / module_file(entry)).is_file()


def test_every_kind_of_source_has_the_file_that_data_dvc_depends_on() -> None:
    for source in load_params(ROOT / "params.yaml").sources.values():
        assert (ROOT / f"pipeline/sources/{source.kind}.py").is_file()


def test_a_run_reads_the_sections_of_its_own_adapter_and_backbone() -> None:
    params = load_params(ROOT / "params.yaml")
    run = Run.of(params, adapter="spectran", dim=32, seed=4)
    assert (run.dataset, run.adapter, run.dim, run.seed) == (params.dataset, "spectran", 32, 4)
    assert run.settings == {
        "train": params.train.model_dump(),
        "backbone": params.backbones["sasrec"],
        "adapter": params.adapters["spectran"],
    }
