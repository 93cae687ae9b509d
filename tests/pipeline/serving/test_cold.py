"""Items held out of training: what is written without them, and how they are ranked."""

import datetime
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from common.errors import UserError
from pipeline.artifacts import atomic_directory, sha256
from pipeline.params import DERIVED, load_params
from pipeline.runs import Run
from pipeline.serving.cold import Held, figures, hold_out, measure, nearest_text, popularity_metrics
from pipeline.serving.recommender import Recommender
from pipeline.training.batches import load_sequences
from pipeline.training.inputs import load_spectrum
from pipeline.training.loop import load_checkpoint
from pipeline.training.sequences import popularity, read_sequences
from stages import cold


@pytest.fixture
def held(project: Path) -> Held:
    return hold_out(load_params(), share=0.25, seed=3)


def test_nothing_of_the_held_out_items_is_left_in_what_is_trained_on(held: Held) -> None:
    before, after = (pl.read_parquet(f"data/sequences/{name}/items.parquet") for name in ("tiny", "tiny-cold"))
    out = before.join(after, on="item_id", how="anti")
    assert DERIVED[held.dataset.removeprefix("tiny")] == "cold"  # no source of the user has this name
    assert out.height == round(0.25 * before.height) == len(held.embeddings)
    assert after["item_id"].to_list() == [item for item in before["item_id"] if item not in set(out["item_id"])]
    ids, kept_ids = before["item_id"].to_list(), after["item_id"].to_list()
    users = dict(pl.read_parquet("data/sequences/tiny/sequences.parquet").select("user_id", "items").iter_rows())
    kept = pl.read_parquet("data/sequences/tiny-cold/sequences.parquet")
    gone = set(out["item_id"])
    expected = {user: [ids[i] for i in items if ids[i] not in gone] for user, items in users.items()}
    expected = {user: items for user, items in expected.items() if len(items) >= 3}
    assert {user: [kept_ids[i] for i in items] for user, items in kept.select("user_id", "items").iter_rows()} == expected
    assert (kept["timestamps"].list.len() == kept["items"].list.len()).all()


def test_the_spectrum_is_that_of_the_kept_items(held: Held) -> None:
    spectrum = load_spectrum(Path("data/spectrum/tiny-cold/random"))
    torch.testing.assert_close(spectrum.embeddings(), held.known, atol=1e-4, rtol=1e-4)
    every = np.load("data/embeddings/tiny/random/embeddings.npy")
    rows = {tuple(row) for row in np.concatenate([held.known.numpy(), held.embeddings.numpy()])}
    assert rows == {tuple(row) for row in every}


def test_items_that_another_process_held_out_meanwhile_are_not_ranked(held: Held) -> None:
    hold_out(load_params(), share=0.25, seed=4)
    with pytest.raises(UserError, match=r"^data/sequences/tiny-cold was replaced meanwhile, with other items held out; let one "):
        measure(load_params(), held, "spectran")


def test_an_adapter_without_text_is_refused_before_another_is_trained(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cold", "spectran", "base"])
    with pytest.raises(UserError, match="adapter Base knows items by their ID alone"):
        cold.main()
    assert not Run.of(load_params(), dataset="tiny-cold", adapter="spectran").finished


def test_cases_are_the_users_whose_last_item_is_held_out(held: Held) -> None:
    ids, kept = (pl.read_parquet(f"data/sequences/{name}/items.parquet")["item_id"].to_list() for name in ("tiny", "tiny-cold"))
    out = [item for item in ids if item not in set(kept)]
    cases = []
    for items in pl.read_parquet("data/sequences/tiny/sequences.parquet")["items"].to_list():
        *history, last = [ids[i] for i in items]
        if last in out:
            cases.append(([item for item in history if item in kept], last))
    assert [
        ([kept[i] for i in history], out[t]) for history, t in zip(held.histories, held.targets.tolist(), strict=True)
    ] == cases


def test_figures_rank_among_all_and_among_the_held_out() -> None:
    """One state; items score 0.9, 0.1, 0.5 (kept), 0.3, 0.8 (held out). The first held out is 4th of all, 2nd of its own."""
    rows = torch.tensor([[0.9], [0.1], [0.5], [0.3], [0.8]])
    held = Held("x", rows[3:], rows[:3], [np.array([0])], torch.tensor([0]))
    found = figures(torch.ones(1, 1), rows, held)
    assert found["NDCG@10"] == pytest.approx(1 / np.log2(5))
    assert found["held_out_NDCG@10"] == pytest.approx(1 / np.log2(3))
    assert found["HR@20"] == 1


def test_chance_is_what_random_orders_give() -> None:
    held = Held("x", torch.empty(40, 2), torch.empty(3, 2), [], torch.empty(0))
    ranks = 1 + np.random.default_rng(0).integers(0, 40, size=200_000)
    found = popularity_metrics(held)
    assert found["HR@10"] == 0
    assert found["held_out_HR@10"] == pytest.approx((ranks <= 10).mean(), abs=0.005)
    assert found["held_out_NDCG@20"] == pytest.approx(np.where(ranks <= 20, 1 / np.log2(ranks + 1), 0).mean(), abs=0.005)


def test_nearest_text_finds_the_item_that_is_worded_as_the_history(held: Held) -> None:
    held.embeddings[held.targets[0]] = held.known[held.histories[0][-10:]].sum(0)
    only = Held(held.dataset, held.embeddings, held.known, held.histories[:1], held.targets[:1])
    assert nearest_text(load_params(), only)["held_out_HR@10"] == 1
    turned = Held(held.dataset, -held.embeddings, held.known, held.histories[:1], held.targets[:1])
    assert nearest_text(load_params(), turned)["held_out_HR@10"] == 0


# ----------------------------------------------------------------------------------------------------------- the split by time


@pytest.fixture
def by_time(project: Path, set_params: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch) -> Held:
    """The same of a dataset that is split by time, whose items have embeddings of their own."""
    dates = {"valid_from": datetime.date(2013, 8, 28), "test_from": "2013-10-20"}
    set_params({"preprocess.split": "global"} | {f"preprocess.{name}": value for name, value in dates.items()})
    monkeypatch.setattr(sys, "argv", ["preprocess", "tiny"])
    import_module("stages.preprocess").main()
    items = Path("data/sequences/tiny/items.parquet")
    made_from = {"dataset": "tiny", "items": sha256(items)}
    rows = np.random.default_rng(1).normal(size=(pl.read_parquet(items).height, 24)).astype(np.float32)
    with atomic_directory(Path("data/embeddings/tiny/random"), made_from) as directory:
        np.save(directory / "embeddings.npy", rows)
    return hold_out(load_params(), share=0.25, seed=3)


def visits(name: str) -> dict[str, list[tuple[str, int]]]:
    """Every user's interactions as (item id, time), oldest first."""
    folder = Path("data/sequences") / name
    ids = pl.read_parquet(folder / "items.parquet")["item_id"].to_list()
    rows = pl.read_parquet(folder / "sequences.parquet").select("user_id", "items", "timestamps").iter_rows()
    return {user: [(ids[i], time) for i, time in zip(items, times, strict=True)] for user, items, times in rows}


def cut() -> tuple[int, int]:
    split = json.loads(Path("data/sequences/tiny/statistics.json").read_text())["split"]
    return split["valid_from"], split["test_from"]


def test_with_a_split_by_time_training_sees_nothing_from_the_cut_on(by_time: Held) -> None:
    valid_from, test_from = cut()
    folder = Path("data/sequences/tiny-cold")
    kept = pl.read_parquet(folder / "items.parquet")["item_id"].to_list()
    users, n_items = read_sequences(folder)
    split = load_sequences(folder, 50, torch.device("cpu"))
    train, valid = [], []
    for user, log in visits("tiny").items():
        log = [(item, time) for item, time in log if item in kept]
        if len(log) < 3:
            continue
        train.append([item for item, time in log if time < valid_from])
        later = [item for item, time in log if valid_from <= time < test_from]
        if train[-1] and later:
            valid.append((user, train[-1], later[0]))
    seen = [[kept[i] for i in row if i < n_items] for row in split.train.tolist()]
    assert seen == train
    assert [[kept[i] for i in row if i < n_items] for row in split.valid_history.tolist()] == [history for _, history, _ in valid]
    assert [kept[i] for i in split.valid_target.tolist()] == [target for *_, target in valid]
    assert popularity(users, n_items).tolist() == [sum(row.count(item) for row in train) for item in kept]
    assert any(time >= valid_from for log in visits("tiny-cold").values() for _, time in log), "something is there to be kept out"


def test_with_a_split_by_time_cases_are_users_whose_first_item_of_the_test_is_held_out(by_time: Held) -> None:
    _, test_from = cut()
    ids, kept = (pl.read_parquet(f"data/sequences/{name}/items.parquet")["item_id"].to_list() for name in ("tiny", "tiny-cold"))
    out = [item for item in ids if item not in kept]
    cases, other_than_last = [], 0
    for log in visits("tiny").values():
        before = [item for item, time in log if time < test_from and item in kept]
        after = [item for item, time in log if time >= test_from]
        if before and after and after[0] in out:
            cases.append((before, after[0]))
            other_than_last += after[0] != log[-1][0]
    assert [
        ([kept[i] for i in history], out[t]) for history, t in zip(by_time.histories, by_time.targets.tolist(), strict=True)
    ] == cases
    assert other_than_last, "leave-one-out would give the same cases"


def test_with_a_split_by_time_held_out_items_rank_as_the_recommender_lists_them(by_time: Held) -> None:
    """Among all items, and among the held-out ones: the positions in the lists that `recommend` gives with these items added."""
    run = Run.of(load_params(), dataset="tiny-cold", adapter="spectran")
    found = measure(load_params(), by_time, "spectran")["zero"]
    kept = pl.read_parquet("data/sequences/tiny-cold/items.parquet")
    ids = pl.read_parquet("data/sequences/tiny/items.parquet").filter(~pl.col("item_id").is_in(kept["item_id"].to_list()))
    model = load_checkpoint(run.scratch, run, load_spectrum(run.spectrum))
    recommender = Recommender(model, kept, read_sequences(run.sequences)[0], run).with_items(ids, by_time.embeddings)
    out = ids["item_id"].to_list()
    histories = [[kept["item_id"][int(i)] for i in history] for history in by_time.histories]
    for prefix, allow in (("", None), ("held_out_", out)):
        k = len(recommender.item_ids)
        lists = recommender.recommend(histories, k, exclude_history=False, allow=allow).partition_by("request", as_dict=True)
        ranks = np.array(
            [1 + lists[(i,)]["item_id"].to_list().index(out[target]) for i, target in enumerate(by_time.targets.tolist())]
        )
        assert found[f"{prefix}HR@20"] == pytest.approx((ranks <= 20).mean())
        assert found[f"{prefix}NDCG@20"] == pytest.approx(np.where(ranks <= 20, 1 / np.log2(ranks + 1), 0).mean())
        assert 0 < found[f"{prefix}HR@20"] < 1


def test_what_a_killed_training_left_is_removed(held: Held) -> None:
    """A kill between putting the result in place and tidying up."""
    run = Run.of(load_params(), dataset="tiny-cold", adapter="morec")
    found = measure(load_params(), held, "morec")
    state = Path(".scratch/unfinished") / run.fingerprint / "state.pt"
    state.parent.mkdir(parents=True)
    state.touch()
    assert measure(load_params(), held, "morec") == found
    assert not state.parent.exists()


def test_embeddings_of_other_items_are_refused_in_one_line(by_time: Held) -> None:
    """As after a change of `preprocess`, if nothing was embedded again."""
    folder = Path("data/embeddings/tiny/random")
    rows = np.load(folder / "embeddings.npy")
    with atomic_directory(folder, {"dataset": "tiny", "items": "of another split"}) as directory:
        np.save(directory / "embeddings.npy", rows)
    with pytest.raises(UserError, match=r"computed for other items than those of data/sequences/tiny; run `dvc repro"):
        hold_out(load_params(), share=0.25, seed=3)


@pytest.mark.slow
def test_the_stage_writes_a_row_per_method(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cold", "spectran", "morec", "llminit", "--share", "0.25"])
    assert "items held out" in cold.main()
    table = pl.read_csv("metrics/cold/tiny/cold.csv")
    assert table.select("method", "ids").fill_null("").rows() == [
        ("popularity", ""),
        ("nearest text", ""),
        ("spectran", "mean"),
        ("spectran", "zero"),
        ("morec", ""),
        ("llminit", ""),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["spectra"], "did you mean 'spectran'"),
        (["--share", "1"], "choose one between"),
        (["--share", "0.001"], r"^--share 0.001 holds out 0 of \d+ items of tiny; choose another"),
        (["--share", "0.999"], r"^--share 0.999 holds out \d+ of \d+ items"),
        (["--seed", "-1"], r"^--seed is -1; choose 0 or more"),
    ],
)
def test_a_mistake_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cold", *arguments])
    with pytest.raises(UserError, match=says):
        cold.main()
