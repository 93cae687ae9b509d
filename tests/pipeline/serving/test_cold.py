"""Items held out of training: what is written without them, and how they are ranked."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from common.errors import UserError
from pipeline.params import load_params
from pipeline.serving.cold import Held, chance, figures, hold_out, nearest_text
from pipeline.training.inputs import load_spectrum
from stages import cold


@pytest.fixture
def held(project: Path) -> Held:
    return hold_out(load_params(), share=0.25, seed=3)


def test_nothing_of_the_held_out_items_is_left_in_what_is_trained_on(held: Held) -> None:
    before, after = (pl.read_parquet(f"data/sequences/{name}/items.parquet") for name in ("tiny", "tiny-cold"))
    out = before.join(after, on="item_id", how="anti")
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
    found = chance(held)
    assert found["HR@10"] == 0
    assert found["held_out_HR@10"] == pytest.approx((ranks <= 10).mean(), abs=0.005)
    assert found["held_out_NDCG@20"] == pytest.approx(np.where(ranks <= 20, 1 / np.log2(ranks + 1), 0).mean(), abs=0.005)


def test_nearest_text_finds_the_item_that_is_worded_as_the_history(held: Held) -> None:
    held.embeddings[held.targets[0]] = held.known[held.histories[0][-10:]].sum(0)
    only = Held(held.dataset, held.embeddings, held.known, held.histories[:1], held.targets[:1])
    assert nearest_text(load_params(), only)["held_out_HR@10"] == 1
    turned = Held(held.dataset, -held.embeddings, held.known, held.histories[:1], held.targets[:1])
    assert nearest_text(load_params(), turned)["held_out_HR@10"] == 0


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
        (["--share", "0.001"], "is among the 0 that are held out"),
    ],
)
def test_a_mistake_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cold", *arguments])
    with pytest.raises(UserError, match=says):
        cold.main()
