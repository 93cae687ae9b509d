"""Training and evaluation of every adapter on every backbone, and of the ablations, on a small catalogue."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from common.errors import UserError
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.core.adapter import Spectrum
from models.core.recommender import Recommender
from pipeline.artifacts import atomic_directory, sha256
from pipeline.embedding.spectrum import decompose
from pipeline.grid.execution import evaluated, trained
from pipeline.params import load_params
from pipeline.runs import Run
from pipeline.training.loop import load_checkpoint

ROOT = Path(__file__).parents[2]
USERS = 80


@pytest.fixture
def project(tmp_path: Path, spectrum: Spectrum, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artifacts that training reads: users whose items are neighbours, and the spectrum of the test's catalogue."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECTRAN_SCRATCH", str(tmp_path / "scratch"))
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, 60, USERS), rng.integers(3, 9, USERS)
    items = [[int((start + i) % 60) for i in range(length)] for start, length in zip(starts, lengths, strict=True)]
    directory = tmp_path / "data/sequences/tiny"
    with atomic_directory(directory, {"dataset": "tiny"}) as partial:
        pl.DataFrame({"user_id": [f"u{i}" for i in range(USERS)], "items": items}).write_parquet(partial / "sequences.parquet")
        pl.DataFrame({"item_id": [f"i{i}" for i in range(60)]}).write_parquet(partial / "items.parquet")
    target = tmp_path / "data/spectrum/tiny/minilm"
    np.save(tmp_path / "embeddings.npy", spectrum.embeddings().numpy())
    with atomic_directory(target, {"embeddings": {"items": sha256(directory / "items.parquet")}}) as partial:
        decompose(tmp_path / "embeddings.npy", partial)
    return tmp_path


@pytest.fixture
def tiny_run(project: Path) -> Callable[..., Run]:
    """Return a run with the repository's parameters, one epoch and dim 8."""

    def of(adapter: str, backbone: str, train: dict[str, Any] | None = None, **options: Any) -> Run:
        run = Run.of(load_params(ROOT / "params.yaml"), dataset="tiny", adapter=adapter, backbone=backbone, dim=8)
        settings = {
            "train": run.settings["train"] | {"epochs": 1, "batch_size": 32, "max_history": 5} | (train or {}),
            "backbone": run.settings["backbone"],
            "adapter": run.settings["adapter"] | options,
            "evaluate": run.settings["evaluate"],
        }
        return Run("tiny", "minilm", backbone, adapter, 8, 0, settings)

    return of


def check(run: Run) -> None:
    directory = evaluated(run)
    summary = json.loads((directory / "training.json").read_text())
    assert summary["epochs"] == 1
    assert 0 < summary["validation"]["NDCG@20"] <= 1
    ranks = pl.read_parquet(directory / "ranks.parquet")["rank"]
    assert len(ranks) == USERS
    assert 1 <= ranks.min() <= ranks.max() <= 60
    analysis = json.loads((directory / "analysis.json").read_text())
    assert analysis["trainable_parameters"] == summary["trainable_parameters"]
    assert 0 < analysis["effective_rank"] <= 8
    assert 0 < analysis["top10_share"] <= 1 + 1e-9
    assert analysis["inference_seconds"] > 0
    curve = pl.read_csv(directory / "spectrum.csv")["cumulative_share"]
    assert curve.is_sorted()
    assert curve[-1] == pytest.approx(1)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_adapter_on_every_backbone(tiny_run: Callable[..., Run], adapter: str, backbone: str) -> None:
    check(tiny_run(adapter, backbone))


@pytest.mark.parametrize("variant", ["full", "without_attention", "principal_sigma", "principal_identity", "without_encoding"])
def test_every_ablation_of_spectran(tiny_run: Callable[..., Run], variant: str) -> None:
    check(tiny_run("spectran", "sasrec", variant=variant))


@pytest.mark.parametrize("adapter", [name for name in ADAPTERS if ADAPTERS.load(name).per_item])
def test_every_adapter_with_rows_by_sparse_adam(tiny_run: Callable[..., Run], adapter: str) -> None:
    """MoRec and WhitenRec train no tensor with one row per item."""
    check(tiny_run(adapter, "sasrec", train={"epochs": 1, "optimiser": "sparse_adam"}))


@pytest.mark.parametrize(("backbone", "loss"), [*((name, "info_nce") for name in BACKBONES), ("sasrec", "cross_entropy")])
def test_training_learns_a_walk_through_the_catalogue(tiny_run: Callable[..., Run], backbone: str, loss: str) -> None:
    """Users who visit items in order are predicted far better than at random, where NDCG@20 is 7.04 / 60."""
    run = tiny_run("base", backbone, train={"epochs": 60, "patience": 60, "learning_rate": 0.01, "loss": loss})
    summary = json.loads((trained(run) / "training.json").read_text())
    assert summary["validation"]["NDCG@20"] > 3 * 7.04 / 60


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("loss", ["info_nce", "cross_entropy"])
def test_training_in_bfloat16_stays_near_float32(tiny_run: Callable[..., Run], backbone: str, loss: str) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        run = tiny_run("spectran", backbone, train={"epochs": 2, "precision": precision, "loss": loss})
        losses.append(pl.read_csv(trained(run) / "history.csv")["loss"].to_list())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_tf32_without_a_gpu_says_that_it_is_float32(tiny_run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch finds a GPU")
    trained(tiny_run("base", "sasrec", train={"precision": "tf32"}))
    assert "precision: float32 (train.precision is tf32, which is a GPU's)" in capsys.readouterr().out


def test_an_epoch_of_cloze_goes_over_the_users_as_often_as_asked(
    tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    original = Recommender.loss
    monkeypatch.setattr(Recommender, "loss", lambda *arguments: (steps.append(1), original(*arguments))[1])
    run = tiny_run("base", "bert4rec")
    run.settings["backbone"] = run.settings["backbone"] | {"passes_per_epoch": 2}
    trained(run)
    assert len(steps) == 2 * 3  # 80 users in batches of 32


def poison(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Make the loss of one step not finite; steps are counted from 1 over the whole run."""
    calls = []
    original = Recommender.loss

    def loss(self: Recommender, *arguments: Any) -> tuple[torch.Tensor, int]:
        calls.append(1)
        result, count = original(self, *arguments)
        return (result * value if len(calls) == step else result), count

    monkeypatch.setattr(Recommender, "loss", loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_best_weights(
    tiny_run: Callable[..., Run], project: Path, spectrum: Spectrum, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    run = tiny_run("spectran", "sasrec", train={"epochs": 5})
    poison(monkeypatch, step=8, value=value)  # the second of three steps of epoch 3
    with pytest.raises(UserError) as error:
        trained(run)
    kept = project / "scratch/stopped" / run.fingerprint
    assert f"the loss is {value} at step 2 of epoch 3" in str(error.value)
    assert str(kept) in str(error.value)
    assert "\n" not in str(error.value)
    assert not run.finished
    model = load_checkpoint(kept, run, spectrum)
    assert all(p.isfinite().all() for p in model.parameters())
    assert len(pl.read_csv(kept / "history.csv")) == 2


def test_a_loss_that_is_not_finite_in_the_first_epoch_leaves_nothing(
    tiny_run: Callable[..., Run], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("base", "sasrec")
    poison(monkeypatch, step=1, value=float("nan"))
    with pytest.raises(UserError, match=r"at step 1 of epoch 1; .*no weights to keep"):
        trained(run)
    assert not (project / "scratch/stopped").exists()


@pytest.mark.parametrize(("other", "names"), [({"adapter": "morec"}, "adapter"), ({"backbone": "hstu"}, "backbone")])
def test_a_checkpoint_of_another_run_is_refused(
    tiny_run: Callable[..., Run], spectrum: Spectrum, other: dict, names: str
) -> None:
    directory = trained(tiny_run("base", "sasrec"))
    with pytest.raises(UserError, match=f"holds a checkpoint with {names} "):
        load_checkpoint(directory, tiny_run(**({"adapter": "base", "backbone": "sasrec"} | other)), spectrum)


def test_a_checkpoint_of_another_dataset_is_refused(tiny_run: Callable[..., Run], spectrum: Spectrum) -> None:
    run = tiny_run("base", "sasrec")
    directory = trained(run)
    elsewhere = Run("other", *(getattr(run, name) for name in ("encoder", "backbone", "adapter", "dim", "seed", "settings")))
    config = run.config() | {"dataset": "other", "fingerprint": ""}
    object.__setattr__(elsewhere, "config", lambda: config)
    with pytest.raises(UserError, match=r"checkpoint with dataset 'tiny', params\.yaml says 'other'"):
        load_checkpoint(directory, elsewhere, spectrum)
