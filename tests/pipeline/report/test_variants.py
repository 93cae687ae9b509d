"""Variants of SpecTran against SpecTran, over users: the same from cells and from published results."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.errors import UserError
from pipeline.grid.cells import Cell
from pipeline.grid.published import RUNS
from pipeline.report.blocks import filled
from pipeline.report.leaders import PublishedSet
from pipeline.report.variants import against_spectran, entry, of_cells, of_published
from tests.sign import sign

USERS = [f"u{i}" for i in range(40)]
RANKS = {  # by variant and seed; 20 users have rank 1, and 20 have none within the cutoff
    ("spectran", 0): [1] * 20 + [99] * 20,
    ("spectran", 1): [1] * 20 + [99] * 20,
    ("without_attention", 0): [1] * 20 + [99] * 20,
    ("without_attention", 1): [1] * 20 + [99] * 20,
    ("without_encoding", 0): [1] * 20 + [99] * 20,
    ("without_encoding", 1): [99] * 40,
}
BLOCK = '<!-- parts: {cutoff}\nshop "Shop"\n-->\nold\n<!-- end of parts -->\n'


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published folder with SpecTran, two variants of it and MoRec."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs/results/shop"
    folder.mkdir(parents=True)
    keys = {"dataset": "toys", "backbone": "sasrec", "adapter": "spectran", "dim": 8, "loss": "info_nce"}
    added = {"commit": "c0", "torch": "2.13"}
    runs, cells = [], {"seeds": [], "variants": []}
    for (variant, seed), ranks in RANKS.items():
        over = "seeds" if variant == "spectran" else "variants"
        name = "full" if variant == "spectran" else variant
        runs.append(keys | added | {"seed": seed, "variant": name, "over": over, "fingerprint": f"{variant}-{seed}"})
        cells[over].append({"fingerprint": f"{variant}-{seed}", "ranks": ranks})
    runs.append(keys | added | {"adapter": "morec", "seed": 0, "variant": None, "over": "seeds", "fingerprint": "morec-0"})
    pl.DataFrame(runs).write_csv(folder / RUNS)
    pl.DataFrame(cells["seeds"]).write_parquet(folder / "toys-sasrec-spectran.parquet")
    pl.DataFrame(cells["variants"]).write_parquet(folder / "toys-sasrec-spectran-variants.parquet")
    sign(folder)
    return folder


def test_a_variant_that_ranks_alike_is_level_and_one_that_loses_half_is_not() -> None:
    """Half of every user's NDCG is half of the mean, whoever is drawn. No sign but all or none gives as large a difference."""
    full = np.linspace(0.1, 1.0, 40)
    same, half = against_spectran({"spectran": full, "same": full, "half": full / 2}).iter_rows(named=True)
    assert (same["gain"], same["low"], same["high"], same["p_holm"], same["users"]) == (0, 0, 0, 1, 40)
    assert [half[name] for name in ("gain", "low", "high")] == pytest.approx([-0.5] * 3)
    assert half["p_holm"] == pytest.approx(2 / 10_001), "the smallest p of 10,000 permutations, for two variants"


def test_without_spectran_or_variants_there_is_nothing_to_compare() -> None:
    full = np.ones(3)
    for ndcg in ({"spectran": full}, {"same": full}, {"spectran": full * 0, "same": full}, {}):
        assert against_spectran(ndcg).is_empty()


def cell_rows(users: list[str] = USERS) -> pl.DataFrame:
    """The rows of Table 3 for the same runs in cells, which lie below the current directory; and a row of Base."""
    rows = [{"dataset": "toys", "backbone": "sasrec", "variant": "base", "seed": 0, "over": "seeds", "run_directory": "gone"}]
    for over in ("seeds", "variants"):
        cell = Cell("toys", "sasrec", "spectran", over)
        cell.directory.mkdir(parents=True)
        frames = []
        for (variant, seed), ranks in RANKS.items():
            if (variant == "spectran") == (over == "seeds"):
                stored = {"variant": "full" if over == "seeds" else variant, "dim": 8, "seed": seed}
                ids = USERS if over == "seeds" else users
                frames.append(pl.DataFrame(stored | {"user_id": ids, "rank": ranks[: len(ids)]}))
                rows.append({"dataset": "toys", "backbone": "sasrec", "variant": variant, "seed": seed, "over": over})
                rows[-1]["run_directory"] = str(cell.run_directory(stored))
        pl.concat(frames).write_parquet(cell.directory / "ranks.parquet")
    return pl.DataFrame(rows)


@pytest.mark.usefixtures("shop")
def test_published_results_give_what_their_cells_do() -> None:
    """Without its encoding, SpecTran finds the item of 20 users with one seed of two: half as often."""
    of_grid = of_cells(cell_rows(), 20)
    assert of_grid.drop("dataset", "backbone", "metric").equals(of_published(PublishedSet.named("shop"), 20))
    assert of_grid["metric"].to_list() == ["NDCG@20"] * 2
    assert dict(of_grid.select("variant", "gain").iter_rows()) == {"without_attention": 0, "without_encoding": -0.5}
    text = filled(BLOCK.format(cutoff=20), "README.md")
    assert "| without φ(QKᵀ) | +0.0 % (+0.0 to +0.0), p = 1.0000 |" in text
    assert "| without D | -50.0 % (-50.0 to -50.0), p = 0.0002 |" in text
    assert filled(text, "README.md") == text


def test_the_whole_spectran_may_be_in_the_cell_of_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 2 has another variant as SpecTran's default, and `full` is in the list: then Table 3 calls that one SpecTran."""
    monkeypatch.chdir(tmp_path)
    rows = cell_rows()
    file = Cell("toys", "sasrec", "spectran", "variants").directory / "ranks.parquet"
    pl.read_parquet(file).with_columns(pl.col("variant").replace("without_attention", "full")).write_parquet(file)
    rows = rows.with_columns(
        variant=pl.col("variant").replace(["spectran", "without_attention"], ["without_attention", "spectran"]),
        run_directory=pl.col("run_directory").str.replace("without_attention", "full"),
    )
    assert dict(of_cells(rows, 20).select("variant", "gain").iter_rows()) == {"without_attention": 0, "without_encoding": -0.5}


@pytest.mark.parametrize("users", [USERS[:39], [*USERS[:39], "other"]])
def test_cells_with_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^the cells of toys hold different users"):
        of_cells(cell_rows(users), 20)


def test_one_user_has_no_interval() -> None:
    (row,) = against_spectran({"spectran": np.ones(1), "without_encoding": np.ones(1) / 2}).iter_rows(named=True)
    assert entry(row) == "-50.0 %, p = 1.0000"


def test_the_ranking_is_that_of_the_published_tables(shop: Path) -> None:
    runs = pl.read_csv(shop / RUNS).with_columns(exclude_history=True)
    runs.write_csv(shop / RUNS)
    for file in shop.glob("*.parquet"):
        table = pl.read_parquet(file)
        table.with_columns(ranks_without_history=pl.lit([1] * 40)).write_parquet(file)
    sign(shop)
    assert of_published(PublishedSet.named("shop"), 20)["gain"].to_list() == [0, 0]


@pytest.mark.parametrize("cutoff", ["", "0", "NDCG@20", "20 10"])
@pytest.mark.usefixtures("shop")
def test_a_block_that_names_no_cutoff_is_refused(cutoff: str) -> None:
    with pytest.raises(UserError, match=r"^README.md: parts: .*is not what a block of parts starts with"):
        filled(BLOCK.format(cutoff=cutoff), "README.md")


def test_a_folder_without_variants_is_refused(shop: Path) -> None:
    runs = pl.read_csv(shop / RUNS)
    runs.filter(over="seeds").write_csv(shop / RUNS)
    sign(shop)
    with pytest.raises(UserError, match=r"^docs/results/shop: not SpecTran and variants of it on one pair"):
        of_published(PublishedSet.named("shop"), 20)
