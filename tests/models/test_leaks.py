"""No run sees its test items: they change nothing that is trained, and a rule that holds in them alone is not learnt."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.core.adapter import Spectrum
from pipeline.artifacts import atomic_directory, sha256
from pipeline.embedding.spectrum import decompose
from pipeline.grid.execution import evaluated, trained
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training import loop
from pipeline.training.batches import SplitSequences
from pipeline.training.sequences import popularity

ROOT = Path(__file__).parents[2]
ITEMS = 60  # of the catalogue in conftest.py
LENGTH = 2
REPEATED = 6  # users per item that their test item follows
CUTOFF = 10
# What each backbone needs to learn a leak: epochs and learning rate.
LEARNING = {"sasrec": (50, 0.003), "hstu": (60, 0.01), "bert4rec": (60, 0.003)}
# Those that learn a leak in these epochs, so that chance says something. The others learn 60 random texts too slowly.
LEARNERS = ("base", "llminit", "alphafuse", "spectran")
CHANCE = CUTOFF / ITEMS
# Users whose test items follow the same item are alike: ITEMS independent observations, and four standard deviations.
BOUND = CHANCE + 4 * np.sqrt(CHANCE * (1 - CHANCE) / ITEMS)
SAMPLE = {("sasrec", "spectran"), ("bert4rec", "base"), ("hstu", "llm_esr")}
PAIRS = [
    pytest.param(backbone, adapter, marks=[] if (backbone, adapter) in SAMPLE else pytest.mark.slow)
    for backbone in BACKBONES
    for adapter in ADAPTERS
]


def canary(seed: int) -> list[list[int]]:
    """Random items, of which the last follows from the one before it by a permutation that holds nowhere else."""
    rng = np.random.default_rng(seed)
    follows = np.roll(rng.permutation(ITEMS), 1)
    before = np.tile(np.arange(ITEMS), REPEATED)
    random = rng.integers(0, ITEMS, (len(before), LENGTH))
    return np.column_stack([random, before, follows[before]]).tolist()


@pytest.fixture
def project(tmp_path: Path, spectrum: Spectrum, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECTRAN_SCRATCH", str(tmp_path / "scratch"))
    np.save("embeddings.npy", spectrum.embeddings().numpy())
    write_sequences(canary(0))
    items = sha256(Path("data/sequences/tiny/items.parquet"))
    with atomic_directory(Path("data/spectrum/tiny/minilm"), {"embeddings": {"items": items}}) as partial:
        decompose(tmp_path / "embeddings.npy", partial)
    return tmp_path


def write_sequences(items: list[list[int]]) -> None:
    with atomic_directory(Path("data/sequences/tiny"), {"dataset": "tiny"}) as partial:
        users = {"user_id": [f"u{i}" for i in range(len(items))], "items": items}
        pl.DataFrame(users).write_parquet(partial / "sequences.parquet")
        pl.DataFrame({"item_id": [f"i{i}" for i in range(ITEMS)]}).write_parquet(partial / "items.parquet")


def run_of(backbone: str, adapter: str, epochs: int, learning_rate: float = 0.01) -> Run:
    run = Run.of(load_params(ROOT / "params.yaml"), dataset="tiny", adapter=adapter, backbone=backbone, dim=16)
    train = {"epochs": epochs, "patience": epochs, "batch_size": 64, "max_history": LENGTH + 1}
    train["learning_rate"] = learning_rate
    return replace(run, settings=run.settings | {"train": run.settings["train"] | train})


def hit_rate(run: Run) -> float:
    return float((pl.read_parquet(evaluated(run) / "ranks.parquet")["rank"] <= CUTOFF).mean())


def chosen_by_the_test(load: Callable[..., SplitSequences], leak: bool) -> Callable[..., SplitSequences]:
    """A loader by which validation chooses the epoch that is best on the test. leak: the test item ends the training sequence."""

    def loaded(*arguments: Any) -> SplitSequences:
        split = load(*arguments)
        train = torch.column_stack([split.test_history, split.test_target]) if leak else split.train
        return replace(split, train=train, valid_history=split.test_history, valid_target=split.test_target)

    return loaded


@pytest.mark.slow
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("adapter", LEARNERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_only_a_leak_could_tell_is_met_by_chance(
    backbone: str, adapter: str, leak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its best epoch, too, an honest run stays within the bound. The control: with a leak, the same run exceeds it."""
    monkeypatch.setattr(loop, "load_sequences", chosen_by_the_test(loop.load_sequences, leak))
    assert (hit_rate(run_of(backbone, adapter, *LEARNING[backbone])) > BOUND) == leak


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("backbone", "adapter"), PAIRS)
def test_other_test_items_change_no_weight(backbone: str, adapter: str) -> None:
    """Popularity, whitening and initial tables included: whatever a model is made of, no test item is in it."""
    weights = []
    for follows in (0, 1):
        sequences = [[*items[:-1], (items[-1] + follows * 7) % ITEMS] for items in canary(0)]
        write_sequences(sequences)
        weights.append((trained(run_of(backbone, adapter, 2)) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("project")
def test_an_adapter_that_reads_popularity_sees_no_test_item() -> None:
    """LLMInit's column choice by popular items, where popularity decides."""
    run = run_of("sasrec", "llminit", 1)
    run = replace(run, settings=run.settings | {"adapter": run.settings["adapter"] | {"popular_share": 0.2}})
    weights = []
    for test_item in (3, 4):
        write_sequences([[*items[:-1], test_item] for items in canary(0)])
        weights.append((trained(replace(run)) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_popularity_counts_what_a_loop_over_training_items_counts() -> None:
    sequences = canary(3)
    expected = [0] * ITEMS
    for items in sequences:
        for item in items[:-2]:
            expected[item] += 1
    assert (
        popularity(pl.DataFrame({"items": sequences, "train": [len(items) - 2 for items in sequences]}), ITEMS).tolist()
        == expected
    )


def test_the_spectrum_stage_has_no_way_to_interactions() -> None:
    """It reads embeddings, these the texts of items: DVC knows of no other dependency, and the code imports none."""
    stages = (ROOT / "data/dvc.yaml").read_text(encoding="utf-8")
    embedding = stages[stages.index("  embed:\n") :]
    assert "data/sequences/${key}/items.parquet" in embedding
    assert "sequences.parquet" not in embedding
    assert "- data/sequences/${key}\n" not in embedding
    for file in ("stages/embed.py", "stages/svd.py", *(str(path) for path in (ROOT / "pipeline/embedding").glob("*.py"))):
        assert "sequences.parquet" not in (ROOT / file).read_text(encoding="utf-8")
