"""The lists of CONTRIBUTING.md are complete: a copy of the project needs only their files for a new method."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clone import Project

ROOT = Path(__file__).parents[1]
SHORT = 3  # entries of a list that are enough to run a method
SCHEMA = "docs/params.schema.json"  # written by a command of the list

ADAPTER = '''"""Mine: one trainable vector, scaled item by item. For a test."""

import torch
from pydantic import Field
from torch import Tensor, nn

from common.section import Section
from models.core.adapter import Adapter, Spectrum, id_embedding


class Mine(Adapter):
    """T = E_id * gain."""

    class Config(Section):
        id_std: float = Field(0.02, gt=0, description="standard deviation of the initial ID embeddings")

    per_item = ("id_embedding",)

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__(spectrum.n_items, dim)
        self.id_embedding = id_embedding(spectrum.n_items, dim, config.id_std)
        self.gain = nn.Parameter(torch.ones(dim))

    def table(self) -> Tensor:
        return self.id_embedding * self.gain
'''

BACKBONE = '''"""Mean: the mean of the items so far, each scaled by its position. For a test."""

import torch
from torch import Tensor, nn

from common.section import Section
from models.core.backbone import CausalBackbone
from models.core.layout import Layout


class Mean(CausalBackbone):
    """No options, no layers."""

    Config = Section

    def __init__(self, config: Section, n_items: int, dim: int, max_history: int) -> None:
        super().__init__(n_items, max_history)
        self.position = nn.Parameter(torch.ones(max_history, dim) + 0.02 * torch.randn(max_history, dim))

    def forward(self, x: Tensor, layout: Layout, query_layout: Layout) -> Tensor:
        weights = query_layout.visible.to(x.dtype)
        weights = weights / weights.sum(-1, keepdim=True)
        return query_layout.weighted_values(weights, x * self.position[layout.position])
'''

ADAPTER_TEST = '''"""Mine, compared with its equation."""

import torch

from tests.models.conftest import Make


def test_mine_scales_the_columns_of_the_ids(make: Make) -> None:
    adapter = make("mine").adapter
    with torch.no_grad():
        adapter.gain.copy_(torch.arange(8.0))
    torch.testing.assert_close(adapter.table()[:, 3], 3 * adapter.id_embedding[:, 3])
'''

BACKBONE_TEST = '''"""Mean, compared with a mean by hand."""

import torch

from tests.models.conftest import PADDING, Make


def test_the_last_state_is_the_mean_of_the_scaled_items(make: Make) -> None:
    model = make("base", "mean").eval()
    table, position = model.adapter.table(), model.backbone.position
    found = model.encode(torch.tensor([[PADDING, PADDING, PADDING, 7, 9]]), table)[0, -1]
    torch.testing.assert_close(found, (table[7] * position[3] + table[9] * position[4]) / 2)
'''

# File -> what it becomes, or the line after which another one is put, in the order of the lists.
Edits = dict[str, str | tuple[str, str]]
ADAPTER_EDITS: Edits = {
    "models/adapters/mine.py": ADAPTER,
    "models/adapters/__init__.py": ('        "spectran": "SpecTran",\n', '        "mine": "Mine",\n'),
    "params.yaml": ("\nadapters:\n", "  mine:\n    id_std: 0.02\n"),
    "grid/space.yaml": ("\nadapters:\n", "  mine:\n    id_std: [0.02, 1.0]\n"),
    "tests/models/test_sizes.py": (
        '    "base": lambda n, w, r, c, d, p: n * d,\n',
        '    "mine": lambda n, w, r, c, d, p: n * d + d,\n',
    ),
    "tests/models/adapters/test_mine.py": ADAPTER_TEST,
    "docs/methods.md": ("|---|---|---|---|---|\n", f"| `mine` | yes | no | {11_757 * 128 + 128 + 200_704:,} | never |\n"),
}
BACKBONE_EDITS: Edits = {
    "models/backbones/mean.py": BACKBONE,
    "models/backbones/__init__.py": ('        "hstu": "HSTU",\n', '        "mean": "Mean",\n'),
    "params.yaml": ("\nbackbones:\n", "  mean: {}\n"),
    "grid/space.yaml": ("\nbackbones:\n", "  mean: {}\n"),
    "tests/models/test_sizes.py": ("Callable[[int, int], int]] = {\n", '    "mean": lambda d, h: h * d,\n'),
    "tests/models/backbones/test_mean.py": BACKBONE_TEST,
    "docs/methods.md": ("\n## Backbones\n", "\nAnother one is `mean`, for a test.\n"),
}


def listed(heading: str) -> list[str]:
    """Return the files at the start of the entries of a list of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\d\. `([^` ]+)`", section, re.MULTILINE)


def copy(root: Path) -> Project:
    """A copy of the repository, including tests, as a git repository."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    clone = Project(root)
    clone.run("git", "init", "-q")
    clone.commit()
    return clone


def apply(project: Project, edits: Edits, files: list[str]) -> None:
    for name in files:
        path, edit = project.root / name, edits[name]
        if isinstance(edit, str):
            path.write_text(edit, encoding="utf-8")
        else:
            after, line = edit
            text = path.read_text(encoding="utf-8")
            assert text.count(after) == 1, f"{name}: {after!r}"
            path.write_text(text.replace(after, after + line), encoding="utf-8")


def pytest_in(project: Project, *arguments: str, fails: bool = False) -> str:
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *arguments)
    return project.run(*command, fails=fails)


@pytest.mark.parametrize(
    ("heading", "edits", "name"), [("Add an adapter", ADAPTER_EDITS, "mine"), ("Add a backbone", BACKBONE_EDITS, "mean")]
)
def test_the_lists_name_the_files_that_are_edited(heading: str, edits: Edits, name: str) -> None:
    assert [file.replace("NAME", name) for file in listed(heading)] == list(edits)


@pytest.mark.parametrize("heading", ["Add an adapter", "Add a backbone", "Add a loss", "Add a source", "Add a metric"])
def test_the_lists_name_files_that_exist(heading: str) -> None:
    for file in listed(heading):
        assert re.search("NAME|KIND", file) or (ROOT / file).is_file(), file


@pytest.mark.slow
def test_three_files_are_enough_to_run_a_method_and_the_gate_asks_for_the_others(tmp_path: Path) -> None:
    """The contract tests pass, and messages name the files that are still missing."""
    project = copy(tmp_path / "project")
    for edits in (ADAPTER_EDITS, BACKBONE_EDITS):
        apply(project, edits, list(edits)[:SHORT])
    pairs = "mine-mean or mean-mine or (mine and (sasrec or not (bert4rec or hstu))) or (mean and base)"
    printed = pytest_in(project, "tests/models/test_contract.py", "-k", f"({pairs}) and not bf16")
    assert re.search(r"^\d\d+ passed", printed, re.MULTILINE), "so many tests come for free"
    sizes = "tests/models/test_sizes.py::test_trainable_parameters_are_the_closed_formula"
    documented = "tests/models/test_sizes.py::test_the_documentation_states_the_sizes_on_toys"
    space = "tests/pipeline/grid/test_tuning.py::test_every_adapter_and_backbone_has_a_space_and_every_value_of_it_is_valid"
    schema = "tests/test_project.py"
    printed = pytest_in(project, sizes, documented, space, schema, fails=True)
    for says in (
        "add the number of trainable parameters of mine to ADAPTER_SIZES in tests/models/test_sizes.py",
        "there should be a row of `mine` in the table of sizes in docs/methods.md: 1,705,728 trainable parameters",
        "say in grid/space.yaml what tuning may choose of adapters ['mine']; {} for nothing",
        "write these tests: ['tests/models/adapters/test_mine.py', 'tests/models/backbones/test_mean.py']",
        "docs/params.schema.json is stale; `SPECTRAN_WRITE_SCHEMA=1 pytest tests/test_project.py` writes it",
    ):
        assert says in printed, printed


@pytest.mark.slow
def test_the_lists_are_enough_for_the_whole_gate(tmp_path: Path) -> None:
    project = copy(tmp_path / "project")
    for edits in (ADAPTER_EDITS, BACKBONE_EDITS):
        apply(project, edits, list(edits))
    project.environment["SPECTRAN_WRITE_SCHEMA"] = "1"
    pytest_in(project, "tests/test_project.py")
    del project.environment["SPECTRAN_WRITE_SCHEMA"]
    touched = set(project.run("git", "status", "--porcelain", "--untracked-files=all").split()) - {"M", "??"}
    assert touched == {*ADAPTER_EDITS, *BACKBONE_EDITS, SCHEMA}
    project.commit()
    for command in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)):
        project.run(sys.executable, "-m", *command)
    pytest_in(project, "-n", "2", "--dist", "loadgroup", "--ignore", f"tests/{Path(__file__).name}")
