"""A small causal model, and a project whose results are published."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline.grid import published
from pipeline.grid.cells import Cell, listed_cells
from pipeline.grid.execution import build_cell
from pipeline.params import load_params
from pipeline.runs import Run
from tests.conftest import inside
from tests.params import change_params

FOLDER = Path("docs/results/here")  # of published results
BUILT_ONCE = ("published_project", "reported_project")  # tests with one of them run in the same process, which builds it


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in BUILT_ONCE:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with random weights, whose tokenizer adds a BOS and has no padding token, like Meta's."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", "red", "green", "blue", "tent", "kettle"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Restore torch's settings, because training makes its process use deterministic kernels."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def selected(project: Path) -> Callable[..., Run]:
    """Return the run that the project's params.yaml selects, with changes."""
    return lambda **choice: Run.of(load_params(), **choice)


@pytest.fixture(scope="session")
def published_project(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with three cells, one over dims, built and published."""
    root = tmp_path_factory.mktemp("published") / "project"
    shutil.copytree(tiny_project, root)
    lists = {"datasets": ["tiny"], "backbones": ["sasrec"], "adapters": ["spectran"], "dims": [8]}
    change_params(root / "params.yaml", {"train.epochs": 1, "grid.dimensions": lists})
    with inside(root):
        params = load_params()
        cells = listed_cells(params.grid)
        for cell in cells:
            build_cell(cell, params)
        published.publish([(cell, cell.runs(params)) for cell in cells], FOLDER, "0123456789")
    return root


@pytest.fixture
def cells(project: Path, published_project: Path) -> list[Cell]:
    """The cells of a copy of the published project, which is the current directory."""
    shutil.copytree(published_project, project, dirs_exist_ok=True)
    return listed_cells(load_params().grid)
