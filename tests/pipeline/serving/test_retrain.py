"""Training from earlier weights: what it starts from, row by row, what it refuses, and that the result can be served."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from models.adapters import ADAPTERS
from pipeline.artifacts import atomic_directory, sha256, write_json
from pipeline.data.interactions import build_sequences
from pipeline.data.sources import Raw, write_parquet_pair
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.grid.execution import trained as trained_directory
from pipeline.params import Preprocess, load_params
from pipeline.runs import Run
from pipeline.serving import retrain as retraining
from pipeline.serving.recommender import Recommender
from pipeline.serving.retrain import start, write_dataset
from pipeline.training import loop
from pipeline.training.inputs import load_spectrum
from stages import retrain as stage

pytestmark = pytest.mark.xdist_group("serving")
SetParams = Callable[[dict[str, Any]], None]
CHECKPOINT = Path("data/checkpoints/selected")
RETRAINED = Path("data/checkpoints/longer-retrained")
GONE = 5  # row of the earlier item that the longer log lacks
DAY = 86_400


STRANGER = "a stranger"  # whom the core filter drops


def write(name: str, log: pl.DataFrame, items: pl.DataFrame, vectors: dict[str, np.ndarray], **options: Any) -> None:
    """Write a dataset's log, sequences and embeddings, as the stages do. The log has a user whom the core filter drops."""
    stranger = pl.DataFrame([(STRANGER, log["item_id"][0], DAY)], log.schema, orient="row")
    with atomic_directory(Path("data/raw") / name, {"source": name}) as directory:
        write_parquet_pair(pl.concat([log, stranger]), items, directory)
    made = build_sequences(Raw(log, items), Preprocess(**options))
    sequences = Path("data/sequences") / name
    with atomic_directory(sequences, {"dataset": name}) as directory:
        made.users.write_parquet(directory / "sequences.parquet")
        made.items.write_parquet(directory / "items.parquet")
        write_json(directory / "statistics.json", made.statistics)
    with atomic_directory(
        Path("data/embeddings") / name / "random", {"dataset": name, "items": sha256(sequences / "items.parquet")}
    ) as directory:
        np.save(directory / "embeddings.npy", np.stack([vectors[item] for item in made.items["item_id"]]))


def write_longer(name: str = "longer", added: tuple[str, ...] = ("a-new", "z-new"), **options: Any) -> None:
    """The log of `tiny` and two weeks more, in which everybody has the new items, and none of item GONE in the catalogue."""
    known = pl.read_parquet("data/sequences/tiny/items.parquet")["item_id"].to_list()
    rows = dict(zip(known, np.load("data/embeddings/tiny/random/embeddings.npy"), strict=True))
    draw = np.random.default_rng(7)
    rows |= {item: draw.normal(size=24).astype(np.float32) for item in added}
    log = pl.read_parquet("data/raw/tiny/interactions.parquet").filter(pl.col("item_id").is_in(known))
    end = int(log["timestamp"].max())  # type: ignore[arg-type]
    users = log["user_id"].unique(maintain_order=True)
    later = [
        (user, added[i % 2] if i % 3 else known[i % 50 + 10], end + DAY * day) for i, user in enumerate(users) for day in (1, 14)
    ]
    log = pl.concat([log, pl.DataFrame(later, log.schema, orient="row")]).filter(pl.col("item_id") != known[GONE])
    items = pl.DataFrame({"item_id": [*known, *added], "title": [f"Title {item}" for item in (*known, *added)]})
    write(name, log, items.filter(pl.col("item_id") != known[GONE]), rows, **options)


@pytest.fixture
def longer(trained: Path, set_params_of: SetParams) -> SetParams:
    """The trained project, with the longer log as the selected dataset."""
    write_longer()
    set_params_of({"sources.longer": {"kind": "demo"}, "dataset": "longer"})
    return set_params_of


@pytest.fixture
def set_params_of(trained: Path) -> SetParams:
    import yaml

    def change(values: dict[str, Any]) -> None:
        params = yaml.safe_load((trained / "params.yaml").read_text())
        for name, value in values.items():
            section = params
            *path, last = name.split(".")
            for part in path:
                section = section[part]
            section[last] = value
        (trained / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    return change


def train_earlier(adapter: str, set_params: SetParams) -> Path:
    """Train an adapter on `tiny`; return a checkpoint of it."""
    set_params({"adapter": adapter})
    run = Run.of(load_params(), dataset="tiny")
    source = trained_directory(run)
    target = Path("data/checkpoints/earlier")
    with atomic_directory(target, {"run": run.fingerprint}) as directory:
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(source / name, directory / name)
    return target


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_training_starts_from_the_earlier_rows_and_scores(longer: SetParams, adapter: str) -> None:
    """Every item that stays has the row of T that it had, whatever its new row number; all weights but the IDs are equal."""
    earlier = train_earlier(adapter, longer)
    old = Recommender.load(earlier)
    run = Run.of(load_params(), dataset=write_dataset(old, load_params(), earlier))
    model = start(old, run).eval()
    items = pl.read_parquet("data/sequences/longer/items.parquet")["item_id"].to_list()
    stay = [item for item in items if item in old.item_ids]
    assert set(items) - set(stay) == {"a-new", "z-new"}
    assert set(old.item_ids) - set(stay) == {old.item_ids[GONE]}
    with torch.no_grad():
        table = model.adapter.table()
    here, there = [items.index(item) for item in stay], [old.item_ids.index(item) for item in stay]
    assert here != there, "rows moved"
    torch.testing.assert_close(table[here], old.table[there], atol=2e-5, rtol=1e-4)
    for name, tensor in old.model.state_dict().items():
        if name != "adapter.id_embedding":
            torch.testing.assert_close(model.state_dict()[name], tensor, atol=0, rtol=0)
    with torch.no_grad():
        states = model.next_item_states(torch.tensor([here[:10], here[-10:]]), table)
        expected = old.model.next_item_states(torch.tensor([there[:10], there[-10:]]), old.table)
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


def test_new_items_start_as_in_a_fresh_model(longer: SetParams) -> None:
    old = Recommender.load()
    run = Run.of(load_params(), dataset=write_dataset(old, load_params(), CHECKPOINT))
    items = pl.read_parquet("data/sequences/longer/items.parquet")["item_id"].to_list()
    new = [items.index(item) for item in ("a-new", "z-new")]
    torch.manual_seed(run.seed)
    fresh = loop.build(run, load_spectrum(run.spectrum))
    made = start(old, run)
    assert torch.equal(made.adapter.id_embedding[new], fresh.adapter.id_embedding[new])
    # Their texts are projected onto the earlier directions: u = e V / sigma, in float64, shortened to the longest earlier row.
    folder = Path("data/spectrum/tiny/random")
    U, sigma, V = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("U", "sigma", "V"))
    vectors = np.load("data/embeddings/longer/random/embeddings.npy")[new]
    expected = vectors @ V / sigma
    expected *= np.minimum(1, np.linalg.norm(U, axis=1).max() / np.linalg.norm(expected, axis=1))[:, None]
    np.testing.assert_allclose(made.adapter.U[new].numpy(), expected, atol=1e-5)


def test_ids_that_start_from_texts_start_from_the_earlier_columns(longer: SetParams) -> None:
    earlier = train_earlier("llminit", longer)
    old = Recommender.load(earlier)
    run = Run.of(load_params(), dataset=write_dataset(old, load_params(), earlier))
    made = start(old, run)
    assert torch.equal(made.adapter.columns, old.model.adapter.columns)
    items = pl.read_parquet("data/sequences/longer/items.parquet")["item_id"].to_list()
    row = items.index("a-new")
    # The projection keeps all 24 directions, but a row that is too long is shortened.
    vector = torch.from_numpy(np.load("data/embeddings/longer/random/embeddings.npy")[row])[old.model.adapter.columns]
    made_row = made.adapter.id_embedding.detach()[row]
    torch.testing.assert_close(made_row / made_row.norm(), vector / vector.norm(), atol=1e-4, rtol=1e-3)


@pytest.fixture
def typed(longer: SetParams, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["retrain", *arguments])
        return stage.main()

    return run


def test_the_result_is_served_and_retrained_again(
    typed: Callable[..., str], longer: SetParams, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = typed()
    assert "retrain: 102 items keep their rows; new: 2; gone: 1" in capsys.readouterr().out
    served = Recommender.load(RETRAINED)
    assert re.fullmatch("longer-[0-9a-f]{8}-retrained", served.run.dataset)
    assert summary.startswith(f"{served.run.name} in {RETRAINED}: test NDCG@20 0.")
    found = served.recommend([["a-new", served.item_ids[4]], [served.item_ids[7]]], k=5)
    assert found["source"].unique().to_list() == ["model"]
    log = pl.read_parquet("data/raw/longer/interactions.parquet")
    assert served.history_of(STRANGER) == log.filter(user_id=STRANGER)["item_id"].to_list() != []
    # The figure is that of the test that any checkpoint gets.
    evaluate_run(served.run)
    ranks = pl.read_parquet(served.run.scratch / "ranks.parquet")["rank"].to_numpy()
    expected = np.where(ranks <= 20, 1 / np.log2(ranks + 1.0), 0).mean()
    assert f"test NDCG@20 {expected:.4f}," in summary
    old = Recommender.load()
    assert not torch.equal(served.model.adapter.query, old.model.adapter.query), "it was trained"
    # Tomorrow's tomorrow: from the retrained weights to a third log, with one more item.
    write_longer("third", ("a-new", "y-new"))
    longer({"sources.third": {"kind": "demo"}, "dataset": "third"})
    assert re.search("third-[0-9a-f]{8}-retrained-sasrec-spectran", typed("--checkpoint", str(RETRAINED)))
    assert "retrain: 103 items keep their rows; new: 1; gone: 1" in capsys.readouterr().out
    third = Recommender.load(Path("data/checkpoints/third-retrained"))
    assert {"a-new", "y-new"} <= set(third.item_ids)
    assert torch.equal(Recommender.load(RETRAINED).table, served.table), "the weights that it started from stay"
    with pytest.raises(
        UserError, match="checkpoints/third-retrained was trained on third already; give the longer log a section"
    ):
        typed("--checkpoint", "data/checkpoints/third-retrained")


def test_an_interrupted_retraining_goes_on_and_a_damaged_state_starts_from_the_earlier_weights(
    typed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = typed()
    weights = sha256(RETRAINED / "model.safetensors")
    run = Recommender.load(RETRAINED).run
    shutil.rmtree(run.scratch)
    save, epochs = retraining._save, []

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        epochs.append(1)
        if len(epochs) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        typed()
    assert retraining._unfinished(run).is_file()
    again = typed()
    assert again.rpartition(",")[0] == expected.rpartition(",")[0]
    assert sha256(RETRAINED / "model.safetensors") == weights
    shutil.rmtree(run.scratch)
    retraining._unfinished(run).parent.mkdir(parents=True)
    retraining._unfinished(run).write_bytes(b"half")
    assert typed().rpartition(",")[0] == expected.rpartition(",")[0]
    assert sha256(RETRAINED / "model.safetensors") == weights


def test_the_last_result_stays_until_the_next_one_is_there(
    typed: Callable[..., str], longer: SetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed()
    before = Recommender.load(RETRAINED)
    earlier = train_earlier("spectran", longer)
    weights = load_file(earlier / "model.safetensors")
    with atomic_directory(earlier, {"run": "other weights"}) as directory:
        save_file({name: tensor * 1.01 for name, tensor in weights.items()}, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(Run.of(load_params(), dataset="tiny").config()))

    def interrupted(run: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(retraining, "train_run", interrupted)
        typed("--checkpoint", str(earlier))
    assert torch.equal(Recommender.load(RETRAINED).table, before.table)
    typed("--checkpoint", str(earlier))
    after = Recommender.load(RETRAINED)
    assert not torch.equal(after.table, before.table)
    kept = [folder.name for folder in Path("data/sequences").glob("longer-*")]
    assert kept == [after.run.dataset], "what the replaced result needed is removed"


def test_a_retraining_with_tf32_is_tested_in_float32(longer: SetParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, the setting of the training holds for all products of the process until it is taken back."""
    earlier = train_earlier("base", longer)
    allowed = []
    monkeypatch.setattr(retraining, "train_run", lambda run: setattr(torch.backends.cuda.matmul, "allow_tf32", True))

    def tested(run: Run) -> None:
        allowed.append(torch.backends.cuda.matmul.allow_tf32)
        raise UserError("tested")

    monkeypatch.setattr(retraining, "evaluate_run", tested)
    with pytest.raises(UserError, match=r"^tested$"):
        retraining.retrain(load_params(), earlier, torch.device("cpu"))
    assert allowed == [False]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"adapter": "base"}, "adapter spectran, params.yaml says base"),
        ({"dim": 8}, "dim 16, params.yaml says 8"),
        ({"backbone": "hstu"}, "backbone sasrec, params.yaml says hstu"),
        ({"adapters.spectran.order": 2}, r"adapters\.spectran\.order 3, params\.yaml says 2"),
        ({"train.max_history": 5}, r"train\.max_history 10, params\.yaml says 5"),
        ({"dataset": "tiny"}, "was trained on tiny already"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(
    typed: Callable[..., str], longer: SetParams, change: dict[str, Any], says: str
) -> None:
    longer(change)
    with pytest.raises(UserError, match=says) as refused:
        typed()
    assert "\n" not in str(refused.value)
    assert not RETRAINED.exists()
    assert not list(Path("data/sequences").glob("longer-*"))


def test_another_encoder_is_refused(typed: Callable[..., str], longer: SetParams) -> None:
    params = load_params()
    longer({"encoders": {name: e.model_dump() for name, e in params.encoders.items()} | {"other": {"model": "x"}}})
    longer({"encoder": "other"})
    with pytest.raises(UserError, match=r"was trained with encoder random, params\.yaml says other"):
        typed()
    longer({"encoder": "random"})
    folder = Path("data/embeddings/longer/random")
    made_from = json.loads((folder / "sidecar.json").read_text())
    rows = np.load(folder / "embeddings.npy")
    with atomic_directory(folder, {"items": made_from["items"], "model": "another revision"}) as directory:
        np.save(directory / "embeddings.npy", rows)
    with pytest.raises(UserError, match="was embedded by another version of random than data/spectrum/tiny/random"):
        typed()


def test_weights_that_know_the_validation_are_refused(typed: Callable[..., str], longer: SetParams) -> None:
    """`tiny` was split leave-one-out: training goes to its end. A validation after that end is fine."""
    end = int(pl.read_parquet("data/raw/tiny/interactions.parquet")["timestamp"].max())  # type: ignore[arg-type]
    write_longer(split="global", valid_from=end - DAY * 60, test_from=end + 2 * DAY)
    with pytest.raises(UserError, match=r"was trained on interactions until 20.*but the validation of longer begins at 20"):
        typed()
    write_longer(split="global", valid_from=end + 1, test_from=end + 2 * DAY)
    assert "test NDCG@20" in typed()
