"""Ranks and metrics, compared with sorting, scikit-learn and closed forms."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from pipeline.training import ranking
from pipeline.training.ranking import rank_all, target_ranks
from tests.pipeline.training.conftest import sorted_ranks


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_ranks_are_those_of_a_stable_sort(monkeypatch: pytest.MonkeyPatch, seed: int, levels: int) -> None:
    """Return integer vectors, whose scores are exact and, with few levels, have many ties. Items are in several blocks."""
    monkeypatch.setattr(ranking, "ITEMS", {"cpu": 8 * (1 + seed % 3)})
    rng = np.random.default_rng(seed)
    users, items, dim = rng.integers(1, 40), rng.integers(1, 60), 4
    states = rng.integers(0, levels, size=(users, dim)).astype(np.float32)
    table = rng.integers(0, levels, size=(items, dim)).astype(np.float32)
    targets = rng.integers(items, size=users)
    ranks = target_ranks(*(torch.from_numpy(x) for x in (states, table, targets)))
    np.testing.assert_array_equal(ranks.numpy(), sorted_ranks(states @ table.T, targets))


def test_constant_scores_rank_by_index() -> None:
    ranks = target_ranks(torch.ones(5, 2), torch.ones(5, 2), torch.arange(5))
    assert ranks.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("items", [999, 1025, 3001, 5119])
def test_equal_items_share_their_score_whatever_their_place(items: int) -> None:
    """Duplicate titles give duplicate rows. The lower index ranks first, also across the edges of blocks."""
    torch.manual_seed(0)
    table = torch.nn.functional.normalize(torch.randn(1, 128), dim=-1).expand(items, 128).contiguous()
    states = torch.nn.functional.normalize(torch.randn(30, 128), dim=-1)
    targets = torch.randint(items, (30,))
    assert target_ranks(states, table, targets).tolist() == (targets + 1).tolist()


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("beyond", [1, 5, 20, 1000])
@pytest.mark.parametrize("together", [1, 4, 256])
def test_ranks_up_to_a_cutoff_are_exact_and_others_stay_above_it(
    monkeypatch: pytest.MonkeyPatch, levels: int, beyond: int, together: int
) -> None:
    """Many blocks and ties; users whose target is known to be beyond the cutoff are left out of later blocks."""
    for name, value in (("ITEMS", 16), ("ROWS", together)):
        monkeypatch.setattr(ranking, name, {"cpu": value})
    made, products = [], ranking._scores
    monkeypatch.setattr(ranking, "_scores", lambda s, *rest: (made.append(len(s)), products(s, *rest))[1])
    rng = np.random.default_rng(levels)
    states, table = (torch.from_numpy(rng.integers(0, levels, size=(n, 4)).astype(np.float32)) for n in (100, 500))
    targets = torch.from_numpy(rng.integers(200, 240, size=100))  # in three or four of 32 blocks
    exact = target_ranks(states, table, targets)
    whole = sum(made)
    made.clear()
    found = target_ranks(states, table, targets, beyond=beyond)
    assert found.minimum(torch.tensor(beyond + 1)).equal(exact.minimum(torch.tensor(beyond + 1)))
    assert sum(made) <= whole
    if beyond == 5 and together == 1:
        assert sum(made) < whole / 2, "most users need only the first blocks after those that hold targets"


@pytest.mark.parametrize("held", [1, 60, 10**9])
def test_a_cutoff_changes_nothing_below_it_where_users_are_halved(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    for name, value in (("ITEMS", 8), ("ROWS", 3), ("HELD", held)):
        monkeypatch.setattr(ranking, name, {"cpu": value})
    rng = np.random.default_rng(0)
    states, table = (torch.from_numpy(rng.integers(0, 3, size=(n, 4)).astype(np.float32)) for n in (70, 90))
    targets = torch.from_numpy(rng.integers(90, size=70))
    exact, found = target_ranks(states, table, targets), target_ranks(states, table, targets, beyond=4)
    assert found.clamp(max=5).equal(exact.clamp(max=5))
    with pytest.raises(ValueError, match="either"):
        target_ranks(states, table, targets, excluded=targets[:, None], beyond=4)


@pytest.mark.parametrize("users", [1, 5, 40])
@pytest.mark.parametrize("beyond", [None, 20])
def test_kept_scores_stay_within_their_memory_for_few_users(
    monkeypatch: pytest.MonkeyPatch, users: int, beyond: int | None
) -> None:
    """A product is padded to the users of the others, never to more than there are."""
    monkeypatch.setattr(ranking, "ITEMS", {"cpu": 16})
    made, products = [], ranking._scores

    def scores(states: torch.Tensor, rows: torch.Tensor, height: int, width: int) -> torch.Tensor:
        out = products(states, rows, height, width)
        made.append(out.untyped_storage().nbytes() // out.element_size())
        return out

    monkeypatch.setattr(ranking, "_scores", scores)
    target_ranks(torch.ones(users, 2), torch.ones(400, 2), torch.arange(users) * 400 // users, beyond=beyond)
    assert max(made) == users * 16


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000, None])
def test_ranks_do_not_depend_on_the_size_of_the_chunks(batch_size: int | None) -> None:
    rng = np.random.default_rng(0)
    states = torch.from_numpy(rng.integers(-9, 9, size=(300, 8)).astype(np.float32))
    table = torch.from_numpy(rng.integers(-9, 9, size=(50, 8)).astype(np.float32))
    targets = torch.from_numpy(rng.integers(50, size=300))
    history = torch.arange(300)[:, None]
    ranks = rank_all(lambda h: states[h[:, 0]], table, history, targets, batch_size)
    np.testing.assert_array_equal(ranks, target_ranks(states, table, targets).numpy())
    assert ranks.dtype == np.int64


@pytest.mark.parametrize(("users", "items"), [(2000, 100), (300, 3000)])
def test_scores_stay_within_their_memory(monkeypatch: pytest.MonkeyPatch, users: int, items: int) -> None:
    """Blocks of scores stay small; only the blocks that contain targets are kept until the targets' scores are known."""
    kept = 20_000
    for name, value in (("ITEMS", 64), ("USERS", 500), ("HELD", kept)):
        monkeypatch.setattr(ranking, name, {"cpu": value})
    blocks, chunks, products = [], [], ranking._scores
    monkeypatch.setattr(
        ranking, "_scores", lambda s, rows, *rest: (blocks.append((len(s), len(rows))), products(s, rows, *rest))[1]
    )
    targets = torch.arange(users) * 7919 % items

    def states_of(history: torch.Tensor) -> torch.Tensor:
        chunks.append(len(history))
        return torch.ones(len(history), 2)

    ranks = rank_all(states_of, torch.ones(items, 2), torch.zeros(users, 1), targets)
    assert ranks.tolist() == (targets + 1).tolist()
    assert sum(chunks) == users
    assert max(chunks) <= 500
    assert max(rows for _, rows in blocks) == 64
    assert max(some * items * some / users for some, _ in blocks) <= kept + items, "targets of B users are among N B / U items"
    assert sum(some * rows for some, rows in blocks) == users * items, "every score is made once"


@pytest.mark.parametrize("where", ["table", "states"])
def test_scores_that_are_not_numbers_are_refused_and_never_a_perfect_rank(where: str) -> None:
    """Comparisons with NaN are false, so without a check a diverged model would rank every target first."""
    states, table = torch.ones(3, 2), torch.ones(5, 2)
    (table if where == "table" else states)[1, 0] = float("nan")
    with pytest.raises(UserError, match="NaN") as caught:
        rank_all(lambda h: states[: len(h)], table, torch.zeros(3, 1), torch.tensor([1, 1, 1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_items_that_are_left_out_are_ahead_of_nobody(monkeypatch: pytest.MonkeyPatch, batch_size: int | None) -> None:
    """A target that is among the excluded items still takes part. Some items are excluded twice. Items are in several blocks."""
    monkeypatch.setattr(ranking, "ITEMS", {"cpu": 8})
    rng = np.random.default_rng(0)
    users, n_items = 60, 30
    states, table = (rng.integers(-3, 4, size=(rows, 4)).astype(np.float32) for rows in (users, n_items))
    targets = rng.integers(n_items, size=users)
    excluded = rng.integers(n_items + 1, size=(users, 9))  # n_items: none
    excluded[::4, 3] = targets[::4]
    excluded[::3, 1] = excluded[::3, 7]
    scores = states @ table.T
    among_all = sorted_ranks(scores, targets)
    for row, out, target in zip(scores, excluded, targets, strict=True):
        kept = row[target]
        row[out[out < n_items]] = -np.inf
        row[target] = kept
    given = (torch.from_numpy(x) for x in (table, np.arange(users)[:, None], targets))
    ranks = rank_all(
        lambda h: torch.from_numpy(states)[h[:, 0]], *given, batch_size, lambda users: torch.from_numpy(excluded)[users]
    )
    np.testing.assert_array_equal(ranks, [among_all, sorted_ranks(scores, targets)])
    assert (ranks[0] > ranks[1]).any()


def test_leaving_out_is_the_same_where_users_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    states, table = (torch.from_numpy(rng.normal(size=(rows, 4)).astype(np.float32)) for rows in (50, 40))
    targets, excluded = torch.from_numpy(rng.integers(40, size=50)), torch.from_numpy(rng.integers(41, size=(50, 6)))
    whole = target_ranks(states, table, targets, excluded)
    monkeypatch.setattr(ranking, "HELD", {"cpu": 60})
    assert target_ranks(states, table, targets, excluded).equal(whole)
    assert target_ranks(states, table, targets, torch.full((50, 0), 40)).equal(whole[:1].expand(2, -1)), "nobody had anything"


@pytest.mark.parametrize("items", [1, 7, 8, 2039, 2040, 2041, 5000])
def test_counts_carry_nothing_from_byte_to_byte(items: int) -> None:
    """All items are ahead of the last one, so that sums of flags reach their limit."""
    ranks = target_ranks(torch.ones(3, 2), torch.ones(items, 2), torch.full((3,), items - 1))
    assert ranks.tolist() == [items] * 3


@pytest.mark.parametrize("words", [1, 254, 255, 256, 257, 600])
def test_flags_are_counted_whatever_their_number(words: int) -> None:
    """On a GPU, a block of scores has more words than a byte can count."""
    flags = torch.ones(2, 8 * words, dtype=torch.bool)
    flags[1, ::3] = False
    assert ranking._count(flags).tolist() == [8 * words, 8 * words - -(-8 * words // 3)]


def test_only_blocks_that_hold_targets_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "ITEMS", {"cpu": 8})
    blocks, most, products = weakref.WeakSet(), [], ranking._scores

    def scores(*given: Any) -> torch.Tensor:
        made = products(*given)
        blocks.add(made)
        most.append(len(blocks))
        return made

    monkeypatch.setattr(ranking, "_scores", scores)
    targets = torch.tensor([17, 30, 25])  # of the third and the fourth block of ten
    assert target_ranks(torch.ones(3, 2), torch.ones(80, 2), targets).tolist() == [18, 31, 26]
    assert len(most) == 10
    assert max(most) <= 2 + 2, "those kept, that being compared, and that being made"


def test_equal_scores_rank_by_item_index() -> None:
    ranks = target_ranks(torch.ones(5, 2), torch.ones(9, 2), torch.tensor([0, 1, 4, 7, 8]))
    assert ranks.tolist() == [1, 2, 5, 8, 9]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_ranks_do_not_depend_on_the_batch(generator: torch.Generator, batch_size: int) -> None:
    history, table = torch.randn(40, 8, generator=generator), torch.randn(50, 8, generator=generator)
    targets = torch.randint(50, (40,), generator=generator)
    scores = (history @ table.T).double().numpy()
    expected = [int((row > row[t]).sum()) + 1 for row, t in zip(scores, targets.tolist(), strict=True)]
    assert rank_all(lambda h: h, table, history, targets, batch_size).tolist() == expected
