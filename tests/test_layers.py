"""Imports point one way: a room imports only from layers below its own, and there are no cycles.

Imports anywhere in a file count. `import_module` in common/registry.py, which loads what a parameter names, does not.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("common", "models", "pipeline", "stages")

# From the bottom. A name means a module, or a package with its modules; `name.*` means the modules of a package without its
# `__init__`. The `__init__` of `pipeline.data` is the registry of sources, which `pipeline.params` needs, like those of models.
LAYERS = (
    ("common",),
    ("models.core",),
    ("models.adapters", "models.backbones", "models.losses"),
    ("pipeline.artifacts", "pipeline.data", "pipeline.texts"),
    ("pipeline.params",),
    ("pipeline.device", "pipeline.runs"),
    ("pipeline.data.*",),
    ("pipeline.embedding",),
    ("pipeline.training",),
    ("pipeline.evaluation",),
    ("pipeline.serving",),
    ("pipeline.grid",),
    ("pipeline.report",),
    ("pipeline.remotes",),
    ("pipeline.doctor",),
    ("stages",),
)
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
EMPTY = {"models", "pipeline"}  # packages of packages: a docstring
PAIRS = 100  # of rooms, one of which imports from the other, at most


def modules(root: Path) -> dict[str, Path]:
    """Return {dotted name: file} of all modules."""
    files = (file for top in TOPS for file in sorted((root / top).rglob("*.py")))
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else str(node.module) for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def edges(root: Path) -> set[tuple[str, str]]:
    known = modules(root)
    return {(name, found) for name, file in known.items() for found in imports(file, known) if found in known and found != name}


def room(module: str) -> str:
    """Return the longest entry of LAYERS that a module belongs to."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        inside = f"{name}.*"
        if length < len(parts) and inside in LAYER_OF:
            return inside
        if name in LAYER_OF:
            return name
    raise AssertionError(f"{module} is in no layer: put it into LAYERS in tests/test_layers.py")


def upward(found: set[tuple[str, str]]) -> list[str]:
    """Return the imports between rooms that do not go to a lower layer."""
    pairs = ((room(a), room(b), a, b) for a, b in found if not {a, b} & EMPTY)
    return sorted(f"{a} imports {b}" for here, there, a, b in pairs if here != there and LAYER_OF[here] <= LAYER_OF[there])


def summary(found: set[tuple[str, str]]) -> str:
    between = [(room(a), room(b)) for a, b in found if not {a, b} & EMPTY and room(a) != room(b)]
    return f"{len(between)} imports between rooms, over {len(set(between))} pairs of rooms"


def test_every_module_is_in_a_layer_and_every_layer_has_a_module() -> None:
    rooms = {room(module) for module in modules(ROOT) if module not in EMPTY}
    assert rooms == set(LAYER_OF)


def test_no_import_goes_upward_or_sideways() -> None:
    found = edges(ROOT)
    assert not upward(found), f"{upward(found)}; {summary(found)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = edges(ROOT)
    graph: dict[str, set[str]] = {}
    for name, imported in found:
        graph.setdefault(name, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"{' imports '.join(reversed(error.args[1]))}; {summary(found)}")


def test_rooms_know_few_others() -> None:
    found = edges(ROOT)
    pairs = {(room(a), room(b)) for a, b in found if not {a, b} & EMPTY and room(a) != room(b)}
    assert len(pairs) <= PAIRS, summary(found)


def test_the_packages_of_packages_import_nothing() -> None:
    assert not [edge for edge in edges(ROOT) if edge[0] in EMPTY]


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (
            "models/core/layout.py",
            "def later():\n    from models.adapters import ADAPTERS\n",
            "models.core.layout imports models.adapters",
        ),
        ("pipeline/params.py", "import pipeline.data.files", "pipeline.params imports pipeline.data.files"),
        ("models/adapters/base.py", "from models.losses import LOSSES", "models.adapters.base imports models.losses"),
        ("common/names.py", "from pipeline import artifacts", "common.names imports pipeline.artifacts"),
    ],
)
def test_an_import_upward_or_sideways_is_found(tmp_path: Path, file: str, text: str, says: str) -> None:
    for name in (
        file,
        "models/adapters/__init__.py",
        "models/losses/__init__.py",
        "pipeline/artifacts.py",
        "pipeline/data/files.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file).write_text(text)
    assert upward(edges(tmp_path)) == [says]
