"""The model card of a package."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from common.errors import UserError
from pipeline.artifacts import atomic_directory, read_signed, sha256, write_signed
from pipeline.data.interactions import build_sequences
from pipeline.data.sources import Raw, demo
from pipeline.grid.execution import evaluated
from pipeline.params import load_params
from pipeline.runs import EVALUATED, SELECTED_RANKS, Run
from pipeline.serving.card import licence_of, model_card
from pipeline.serving.recommender import Recommender
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import load_checkpoint
from pipeline.training.sequences import read_sequences

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.xdist_group("serving")


def test_the_card_has_the_runs_metrics_and_settings(packaged: Path, trained_project: Path, checkpoint: Recommender) -> None:
    card = (packaged / "README.md").read_text()
    metrics = json.loads((trained_project / "metrics/evaluation.json").read_text())
    for name in ("HR@10", "HR@20", "NDCG@10", "NDCG@20"):
        assert f"| {name} | {metrics[name]:.4f} ± " in card
    assert "| train.temperature | 0.07 |" in card
    assert checkpoint.run.fingerprint in card


def test_intervals_are_those_of_a_mean_over_users() -> None:
    """Of 100 users a quarter is a hit: the standard error of a share is sqrt(p (1 - p) / (n - 1))."""
    from pipeline.serving.card import _interval, _per_user

    hits = _per_user(np.array([1] * 25 + [50] * 75), "HR", 10)
    assert _interval(hits) == f"0.2500 ± {1.96 * (0.25 * 0.75 / 99) ** 0.5:.4f}"
    assert _per_user(np.array([3, 11]), "NDCG", 10).tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("meta-llama/Meta-Llama-3-8B", "Meta Llama 3 Community License"),
        ("/models/Meta-Llama-3-70B-Instruct", "Meta Llama 3 Community License"),
        ("/hub/models--meta-llama--Meta-Llama-3-8B/snapshots/0", "Meta Llama 3 Community License"),
        ("meta-llama/Meta-Llama-3.1-8B", None),
        ("meta-llama/Meta-Llama-3-1-8B", None),
        ("meta-llama/Meta-Llama-3", None),
        ("meta-llama/Meta-Llama-3-8Bx", None),
        ("HuggingFaceTB/SmolLM2.5-135M", None),
        ("someone/Not-SmolLM2-135M", None),
        ("sentence-transformers/all-MiniLM-L6-v20", None),
        ("not recorded", None),
    ],
)
def test_a_licence_is_that_of_a_whole_name(model: str, licence: str | None) -> None:
    assert licence_of(model) == licence


def test_the_licence_of_every_encoder_of_the_project_is_known() -> None:
    encoders = yaml.safe_load((ROOT / "params.yaml").read_text())["encoders"]
    assert [name for name, encoder in encoders.items() if licence_of(encoder["model"]) is None] == []


def write_ranks(ranks: pl.DataFrame) -> None:
    """Write the ranks of the selected run as its test does, with their checksum."""
    ranks.write_parquet(SELECTED_RANKS)
    write_signed(EVALUATED, read_signed(EVALUATED, "it") | {SELECTED_RANKS.name: sha256(SELECTED_RANKS)})


def test_one_test_user_has_no_interval(trained: Path) -> None:
    recommender = Recommender.load()
    recommender.users = recommender.users.head(1)
    write_ranks(pl.read_parquet(SELECTED_RANKS).filter(user_id=recommender.users["user_id"][0]).with_columns(rank=1))
    card = model_card(recommender)
    assert "items. Of one user." in card
    assert "| HR@10 | 1.0000 | " in card
    assert "±" not in card


def test_users_who_had_the_test_item_before_are_left_out_where_only_new_items_are_ranked(trained: Path) -> None:
    recommender = Recommender.load()
    users = recommender.users.head(2)
    first = users["items"][0].to_list()
    again = pl.Series("items", [[*first[:-1], first[0]], users["items"][1].to_list()])
    recommender.users = users.with_columns(again)
    write_ranks(pl.DataFrame({"user_id": users["user_id"], "rank": [1, 1], "rank_without_history": [50, 1]}))
    card = model_card(recommender)
    assert "| HR@10 | 1.0000 ± 0.0000 | 1.0000 |" in card
    assert "The last column is over the 1 user to whom the test item is new." in card


def test_the_card_of_a_run_that_was_not_tested_says_so(trained: Path) -> None:
    recommender = Recommender.load()
    record = read_signed(EVALUATED, "it")
    for of_another in (
        {"run": record["run"] | {"seed": 1}},
        {"fingerprint": "0" * 32},  # the same choice, trained on other data
    ):
        write_signed(EVALUATED, record | of_another)
        assert "No test of this run was found" in model_card(recommender)
    EVALUATED.unlink()
    assert "No test of this run was found" in model_card(recommender)


def test_ranks_that_changed_after_the_test_are_refused(trained: Path) -> None:
    recommender = Recommender.load()
    pl.read_parquet(SELECTED_RANKS).with_columns(rank=1).write_parquet(SELECTED_RANKS)
    with pytest.raises(UserError, match=r"^data/ranks/selected.parquet is damaged, .*; run `dvc repro evaluate`$"):
        model_card(recommender)
    record = {name: value for name, value in read_signed(EVALUATED, "it").items() if name != SELECTED_RANKS.name}
    write_signed(EVALUATED, record)
    assert "| HR@10 | 1.0000 " in model_card(recommender), "a record of an older version does not have the checksum"


def test_the_card_of_a_run_with_a_split_by_time_has_the_metrics_of_the_users_with_a_target(
    project: Path, set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that DVC did not select: its ranks are in scratch."""
    set_params({"preprocess.split": "global", "preprocess.valid_from": "2013-08-28", "preprocess.test_from": "2013-10-20"})
    folder = Path("data/sequences/tiny")
    made = build_sequences(Raw(*demo.generate(seed=0, n_items=120, n_users=150)), load_params().preprocessing("tiny"))
    items = pl.read_parquet(folder / "items.parquet")
    rows = pl.Series(range(made.items.height)).replace_strict(
        range(made.items.height), [items["item_id"].index_of(item) for item in made.items["item_id"]], default=None
    )
    assert rows.is_not_null().all(), "all items have embeddings"
    users = made.users.with_columns(pl.col("items").list.eval(pl.element().replace_strict(range(len(rows)), rows).cast(pl.Int32)))
    sidecar = {"dataset": "tiny", **load_params().of_preprocessing("tiny")}
    content = {name: (folder / name).read_bytes() for name in ("items.parquet", "statistics.json")}
    with atomic_directory(folder, sidecar) as directory:
        users.write_parquet(directory / "sequences.parquet")
        for name, old in content.items():
            (directory / name).write_bytes(old)
    run = Run.of(load_params())
    ranks = pl.read_parquet(evaluated(run) / "ranks.parquet")
    assert 0 < ranks.height < users.height
    model = load_checkpoint(run.scratch, run, load_spectrum(run.spectrum))
    card = model_card(Recommender(model, items, read_sequences(run.sequences)[0], run))
    assert "By time: validation from 2013-08-28, test from 2013-10-20: every user's first item of the test, ranked" in card
    assert f"{ranks.height:,} users" in card
    assert f"| HR@10 | {(ranks['rank'] <= 10).mean():.4f} ± " in card


@pytest.mark.parametrize(
    ("model", "licence"),
    [("Qwen/Qwen3-Embedding-0.6B", "Apache-2.0"), ("meta-llama/Meta-Llama-3-8B", "Meta Llama 3"), ("own/encoder", "not known")],
)
def test_the_card_names_the_encoders_licence_where_it_is_known(trained: Path, model: str, licence: str) -> None:
    from pipeline.artifacts import read_signed, write_signed

    recommender = Recommender.load()
    sidecar = recommender.run.spectrum / "sidecar.json"
    content = read_signed(sidecar, "")
    content["embeddings"]["encoder"] = {"model": model, "revision": "abc"}
    write_signed(sidecar, content)
    card = model_card(recommender)
    assert f"{model}, revision abc." in card
    assert f"Licence: {licence}" in card
