"""A small catalogue whose spectrum is computed by numpy in float64, and recommenders for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from models.core.adapter import Spectrum
from models.core.attention import Attention
from models.core.layout import Layout
from models.core.recommender import Recommender
from models.losses import LOSSES
from pipeline.training.model import build_recommender

Make = Callable[..., Recommender]
Decompose = Callable[[np.ndarray], Spectrum]

N_ITEMS = 60
PADDING = N_ITEMS
WIDTH = 24
HISTORY = 5
HIDDEN = ~torch.ones(4, 4, dtype=torch.bool).tril()  # torch's masks say what is not seen

PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def steps(model: Recommender, sequences: torch.Tensor, count: int = 3) -> None:
    optimiser = torch.optim.Adam(model.parameter_groups(0.0), lr=1e-2)
    draws = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    model.train()
    for _ in range(count):
        loss, _ = model.loss(sequences, draws)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def assert_half_dropped(read: torch.Tensor, whole: torch.Tensor) -> None:
    """Assert that about half of the entries of `whole` other than zero are zero in `read`, and that the others are doubled."""
    kept = read != 0
    assert float(kept[whole != 0].float().mean()) == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(read[kept], 2 * whole[kept])


def copy_attention(reference: nn.MultiheadAttention, module: Attention) -> None:
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([module.query.weight, module.key_value.weight]))
        reference.in_proj_bias.copy_(torch.cat([module.query.bias, module.key_value.bias]))
        reference.out_proj.weight.copy_(module.output.weight)
        reference.out_proj.bias.copy_(module.output.bias)


def spectrum_of(embeddings: np.ndarray) -> Spectrum:
    """Return both spectra of an embedding table, by numpy's SVD in float64."""

    def of(matrix: np.ndarray, mean: np.ndarray, twin: Callable[[], Spectrum] | None) -> Spectrum:
        u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
        keep = sigma > sigma[0] * 1e-9
        parts = (u[:, keep], sigma[keep], vt[keep].T, mean)
        return Spectrum(*(torch.from_numpy(np.ascontiguousarray(part)).float() for part in parts), twin)

    mean = embeddings.mean(0)
    return of(embeddings, np.zeros_like(mean), lambda: of(embeddings - mean, mean, None))


@pytest.fixture(scope="session")
def embeddings() -> np.ndarray:
    """Unit rows around a common direction with a decaying spectrum, like those of sentence encoders. (60, 24) float64"""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N_ITEMS, WIDTH)) / np.sqrt(1 + np.arange(WIDTH)) + 0.8 * rng.normal(size=WIDTH)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def decompose() -> Callable[[np.ndarray], Spectrum]:
    return spectrum_of


@pytest.fixture(scope="session")
def spectrum(embeddings: np.ndarray) -> Spectrum:
    return spectrum_of(embeddings)


@pytest.fixture
def make(spectrum: Spectrum) -> Callable[..., Recommender]:
    """Build a recommender with the defaults that params.yaml documents; keyword options go to the adapter."""

    def build(
        adapter: str = "base",
        backbone: str = "sasrec",
        *,
        dim: int = 8,
        seed: int = 0,
        on: Spectrum | None = None,
        max_history: int = HISTORY,
        sparse: bool = False,
        backbone_options: dict[str, Any] | None = None,
        **adapter_options: Any,
    ) -> Recommender:
        torch.manual_seed(seed)
        return build_recommender(
            on or spectrum,
            adapter=adapter,
            adapter_options=PARAMS["adapters"][adapter] | adapter_options,
            backbone=backbone,
            backbone_options=PARAMS["backbones"][backbone] | (backbone_options or {}),
            dim=dim,
            max_history=max_history,
            objective=LOSSES.load("info_nce")(0.07, 7),
            sparse=sparse,
        )

    return build


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def sequences() -> torch.Tensor:
    """Left-padded sequences of 2 to 6 items, without repetitions in a sequence. (12, HISTORY + 1)"""
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(N_ITEMS)[: HISTORY + 1] for _ in range(12)])
    for i, row in enumerate(rows):
        row[: i % HISTORY] = N_ITEMS
    return torch.from_numpy(rows)


@pytest.fixture(params=[True, False], ids=["packed", "dense"])
def layout(request: pytest.FixtureRequest) -> Layout:
    """Three sequences of four tokens without padding, packed and dense."""
    return Layout(torch.ones(3, 4, dtype=torch.bool), causal=True, packed=request.param)
