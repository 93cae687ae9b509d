"""Numbers of trainable parameters, compared with formulas and, where its counting is known, with the paper's Table 5."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.core.adapter import Spectrum
from models.core.recommender import Recommender

Make = Callable[..., Recommender]


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def cross_attention(width: int) -> int:
    return 3 * width**2 + linear(width, width)


def whiten_rank(n: int, width: int, rank: int) -> int:
    return rank if n > 2 * width else min(rank, n // 4)


# N items, w columns (embedding width), r and c the ranks of the plain and the centred embeddings, d = dim, p positions of tokens;
# documented defaults.
ADAPTER_SIZES: dict[str, Callable[[int, int, int, int, int, int], int]] = {
    "base": lambda n, w, r, c, d, p: n * d,
    "morec": lambda n, w, r, c, d, p: linear(w, d),
    "unisrec": lambda n, w, r, c, d, p: n * d // 2 + 8 * (w * d // 2 + w) + 2 * 8 * w,
    "llm_esr": lambda n, w, r, c, d, p: (
        n * d // 2 + linear(w, w // 2) + linear(w // 2, d // 2) + 2 * cross_attention(d // 2) + linear(d, d) + p * d // 2
    ),
    "rlmrec": lambda n, w, r, c, d, p: n * d // 2 + linear(w, (w + d // 2) // 2) + linear((w + d // 2) // 2, d // 2),
    "whitenrec": lambda n, w, r, c, d, p: linear(whiten_rank(n, w, c), d) + linear(d, d),
    "llminit": lambda n, w, r, c, d, p: n * d,
    "alphafuse": lambda n, w, r, c, d, p: n * d // 2,
    "spectran": lambda n, w, r, c, d, p: n * d + d * (d + r) + 1 + 4,
    "spec_mlp": lambda n, w, r, c, d, p: linear(whiten_rank(n, w, c), 512) + linear(512, d),
}


def block(d: int, inner: int) -> int:
    return 4 * linear(d, d) + linear(d, inner) + linear(inner, d) + 4 * d


# d = dim, h = the longest history
BACKBONE_SIZES: dict[str, Callable[[int, int], int]] = {
    "sasrec": lambda d, h: 2 * block(d, d) + h * d + 2 * d,
    "bert4rec": lambda d, h: 2 * block(d, 4 * d) + (h + 1) * d + 2 * d + linear(d, d) + 2 * d + d,
    "hstu": lambda d, h: 2 * (4 * d * d + linear(d, d) + 2 * h - 1) + h * d,
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("dim", [8, 16])
def test_trainable_parameters_are_the_closed_formula(
    make: Make, spectrum: Spectrum, adapter: str, backbone: str, dim: int
) -> None:
    for name, sizes, table in ((adapter, ADAPTER_SIZES, "ADAPTER_SIZES"), (backbone, BACKBONE_SIZES, "BACKBONE_SIZES")):
        assert name in sizes, f"add the number of trainable parameters of {name} to {table} in tests/models/test_sizes.py"
    n, w, r, c = spectrum.n_items, spectrum.V.shape[0], spectrum.rank, spectrum.centred.rank
    positions = 5 + (backbone == "bert4rec")  # a history of 5 items and, for BERT4Rec, the item to come
    expected = ADAPTER_SIZES[adapter](n, w, r, c, dim, positions) + BACKBONE_SIZES[backbone](dim, 5)
    assert make(adapter, backbone, dim=dim).n_trainable() == expected


@pytest.fixture(scope="module")
def toys() -> Spectrum:
    """The shapes of Toys with LLaMA3-8B, without values, which sizes do not depend on."""

    def of(rank: int, twin: Callable[[], Spectrum] | None) -> Spectrum:
        shapes = ((11_757, rank), (rank,), (4096, rank), (4096,))
        return Spectrum(*(torch.empty(shape, device="meta") for shape in shapes), twin)

    return of(4096, lambda: of(4096, None))


@pytest.mark.parametrize(
    ("adapter", "options", "padding_row", "printed"),
    [
        ("base", {}, 128, 1_705_728),
        ("morec", {}, 0, 725_120),
        ("morec", {"fusion": "add"}, 128, 2_230_144),
        ("unisrec", {}, 64, 3_148_672),
        ("unisrec", {"fusion": "add"}, 128, 5_998_336),
        ("rlmrec", {}, 64, 9_608_160),
        ("rlmrec", {"fusion": "id"}, 128, 10_629_056),
        # The reverse MLP 128 -> 2112 -> 4096 in place of 4096 -> 2112 -> 128: its biases are 4096 - 128 more.
        ("rlmrec", {"fusion": "id", "objective": "gen"}, 128, 10_629_056 + 4096 - 128),
        ("llm_esr", {}, 64, 9_524_416 + 10 * 64),
        ("whitenrec", {}, 0, 741_632),
        ("spec_mlp", {}, 0, 2_364_032),
        ("llminit", {}, 128, 1_705_728),
        ("alphafuse", {}, 64, 953_216),
        ("spectran", {"order": 3}, 128, 1_705_728 + 128 * (128 + 4096) + 1 + 4),
    ],
)
def test_sizes_on_toys_are_those_of_the_papers_readings(
    make: Make, toys: Spectrum, adapter: str, options: dict, padding_row: int, printed: int
) -> None:
    """The published counts include a row for padding in each ID table; ours has exactly N rows."""
    model = make(adapter, on=toys, dim=128, max_history=10, **options)
    assert model.n_trainable() == printed - padding_row


def test_the_documentation_states_the_sizes_on_toys(make: Make, toys: Spectrum) -> None:
    text = (Path(__file__).parents[2] / "docs/methods.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|", text, re.MULTILINE))
    for adapter in ADAPTERS:
        size = f"{make(adapter, on=toys, dim=128, max_history=10).n_trainable():,}"
        row = f"`{adapter}` in the table of sizes in docs/methods.md: {size} trainable parameters"
        assert stated.pop(adapter, None) == size, f"there should be a row of {row}"
    assert not stated, "rows of adapters that are not registered"


@pytest.mark.parametrize(("backbone", "size"), [("sasrec", 200_704), ("bert4rec", 398_208 + 16_768 + 128), ("hstu", 165_414)])
def test_backbone_sizes_at_dim_128(make: Make, backbone: str, size: int) -> None:
    model = make("llminit", backbone, dim=16).backbone
    assert sum(p.numel() for p in model.parameters()) == BACKBONE_SIZES[backbone](16, 5)
    assert BACKBONE_SIZES[backbone](128, 10) == size


@pytest.mark.parametrize(
    ("variant", "fewer"),
    [
        ("full", 0),
        ("without_attention", 8 * (8 + 24) + 1),
        ("principal_sigma", 4),
        ("principal_identity", 4),
        ("without_encoding", 4),
    ],
)
def test_an_ablation_loses_exactly_the_parameters_of_its_part(make: Make, variant: str, fewer: int) -> None:
    assert make("spectran").n_trainable() - make("spectran", variant=variant).n_trainable() == fewer


@pytest.mark.parametrize(
    ("fusion", "size"), [("add", 60 * 8 + 8 * (8 + 24)), ("none", 8 * (8 + 24)), ("concat", 60 * 4 + 4 * (4 + 24))]
)
def test_fusion_decides_the_size_of_spectrans_ids_and_attention(make: Make, fusion: str, size: int) -> None:
    """IDs have N x d_s parameters, Q and K have d_s (d_s + r), and there are lambda and four coefficients."""
    assert sum(p.numel() for p in make("spectran", fusion=fusion).adapter.parameters()) == size + 1 + 4


def test_a_polynomial_per_dimension_costs_dim_times_as_many_coefficients(make: Make) -> None:
    assert make("spectran", alpha="per_dim").n_trainable() - make("spectran").n_trainable() == (8 - 1) * 4
