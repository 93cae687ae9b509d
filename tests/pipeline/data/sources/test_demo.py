"""The built-in dataset is neither trivial nor hopeless, for any method."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.adapters import ADAPTERS
from pipeline.artifacts import SIDECAR, sha256, write_signed
from pipeline.data.interactions import build_sequences
from pipeline.data.sources import source_module
from pipeline.embedding.encoder import encode
from pipeline.embedding.spectrum import decompose
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training.batches import load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import build, evaluate_ranks, fit
from pipeline.training.metrics import metrics

ROOT = Path(__file__).parents[4]
PARAMS = load_params(ROOT / "params.yaml")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    source = PARAMS.sources["demo"]
    raw = tmp_path_factory.mktemp("raw")
    made = tmp_path_factory.mktemp("sequences")
    module = source_module(source.kind)
    module.fetch(source, PARAMS.download.mirror, raw)
    sequences = build_sequences(module.read(source, raw), PARAMS.preprocess)
    sequences.users.write_parquet(made / "sequences.parquet")
    sequences.items.write_parquet(made / "items.parquet")
    embeddings, _ = encode(sequences.items["text"].to_list(), PARAMS.encoders["minilm"])
    np.save(made / "embeddings.npy", embeddings)
    decompose(made / "embeddings.npy", made)
    files = {path.relative_to(made).as_posix(): sha256(path) for path in made.rglob("*") if path.is_file()}
    write_signed(made / SIDECAR, {"files": files})
    loaded = load_sequences(made, PARAMS.train.max_history, torch.device("cpu"))
    return loaded, load_spectrum(made), sequences


def test_the_catalogue_and_its_shoppers_have_the_promised_size(demo: tuple) -> None:
    size = demo[2].statistics
    assert 800 <= size["items"] <= 1000
    assert 1800 <= size["users"] <= 2000


def test_popularity_alone_is_worse_than_any_method_may_be(demo: tuple) -> None:
    sequences = demo[0]
    counts = np.bincount(sequences.train[sequences.train < sequences.n_items].numpy(), minlength=sequences.n_items)
    ranks = 1 + (counts[None, :] > counts[sequences.test_target.numpy(), None]).sum(1)
    assert metrics(ranks, [10])["HR@10"] < 0.08


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_hr_at_10_lies_between_0_05_and_0_5(demo: tuple, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, spectrum, _ = demo
    run = Run.of(PARAMS, dataset="demo", adapter=adapter, dim=PARAMS.grid.dim, seed=0)
    torch.manual_seed(run.seed)
    model = build(run, spectrum)
    monkeypatch.setattr("pipeline.training.loop._unfinished", lambda _: tmp_path / "state.pt")
    model.load_state_dict(fit(model, sequences, run).weights)
    found = metrics(evaluate_ranks(model, sequences.test_history, sequences.test_target), [10])["HR@10"]
    assert 0.05 <= found <= 0.5
