"""The distributions from which adapters and backbones start."""

from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pytest
from scipy import stats

from models.backbones import BACKBONES
from models.core.adapter import Spectrum
from models.core.recommender import Recommender
from tests.models.conftest import numbers, spectrum_of

Make = Callable[..., Recommender]


def normal(variance: float) -> Any:
    return stats.norm(0, variance**0.5)


def uniform(bound: float) -> Any:
    return stats.uniform(-bound, 2 * bound)


# For 64 columns, 400 items in a history and embeddings with 200 columns. Xavier's variance is 2 / (inputs + outputs).
STARTS = [
    ("base", "id_embedding", normal(0.02**2)),
    ("morec", "dense.weight", normal(2 / (200 + 64))),
    ("unisrec", "id_embedding", normal(0.02**2)),
    ("unisrec", "weight", normal(0.02**2)),
    ("llm_esr", "position", normal(2 / (400 + 32))),
    ("rlmrec", "id_embedding", normal(0.02**2)),
    ("rlmrec", "projection.0.weight", uniform((6 / (200 + 116)) ** 0.5)),
    ("rlmrec", "projection.2.weight", uniform((6 / (116 + 32)) ** 0.5)),
    ("whitenrec", "layers.?.weight", normal(0.02**2)),
    ("spec_mlp", "layers.?.weight", normal(0.02**2)),
    ("spectran", "id_embedding", normal(0.02**2)),
    ("spectran", "query", normal(0.1**2)),
    ("spectran", "key", normal(0.1**2)),
    ("sasrec", "position", normal(0.02**2)),
    ("sasrec", "blocks.?.attention.*", uniform(64**-0.5)),
    ("sasrec", "blocks.?.inner.*", uniform(64**-0.5)),
    ("sasrec", "blocks.?.outer.*", uniform(64**-0.5)),
    ("bert4rec", "position", normal(0.02**2)),
    ("bert4rec", "mask_vector", normal(0.02**2)),
    ("bert4rec", "blocks.?.attention.*.weight", normal(0.02**2)),
    ("bert4rec", "blocks.?.inner.weight", normal(0.02**2)),
    ("bert4rec", "blocks.?.outer.weight", normal(0.02**2)),
    ("bert4rec", "head.0.weight", normal(0.02**2)),
    ("hstu", "position", normal(1 / 64)),
    ("hstu", "blocks.?.weight", normal(0.02**2)),
    ("hstu", "blocks.?.bias", normal(0.02**2)),
    ("hstu", "blocks.?.output.weight", uniform((6 / (64 + 64)) ** 0.5)),
]
ZEROS = [
    ("morec", "dense.bias"),
    ("unisrec", "bias"),
    ("unisrec", "gate*"),
    ("whitenrec", "layers.?.bias"),
    ("spec_mlp", "layers.?.bias"),
    ("spectran", "threshold"),
    ("bert4rec", "*.bias"),
]


@pytest.fixture(scope="module")
def wide() -> Spectrum:
    """The spectrum of 300 items whose embeddings have 200 columns: enough for the distribution of a layer's weights."""
    return spectrum_of(np.random.default_rng(0).normal(size=(300, 200)))


def starts(make: Make, wide: Spectrum, name: str, parameters: str) -> list[np.ndarray]:
    """Return the initial values of the parameters of an adapter or a backbone that match a pattern."""
    chosen = {"backbone": name} if name in BACKBONES else {"adapter": name}
    model = make(on=wide, dim=64, max_history=400, **chosen)
    part = model.backbone if name in BACKBONES else model.adapter
    found = [numbers(p).flatten() for key, p in part.named_parameters() if fnmatch(key, parameters)]
    assert found, f"{name} has no {parameters}"
    return found


@pytest.mark.parametrize(("name", "parameters", "distribution"), STARTS)
def test_parameters_start_from_their_distribution(
    make: Make, wide: Spectrum, name: str, parameters: str, distribution: Any
) -> None:
    """By the standard deviation and by the test of Kolmogorov and Smirnov, which knows a uniform from a normal distribution."""
    for values in starts(make, wide, name, parameters):
        assert values.std() == pytest.approx(distribution.std(), rel=3 / len(values) ** 0.5)
        assert stats.kstest(values, distribution.cdf).pvalue > 1e-4


@pytest.mark.parametrize(("name", "parameters"), ZEROS)
def test_parameters_start_at_zero(make: Make, wide: Spectrum, name: str, parameters: str) -> None:
    for values in starts(make, wide, name, parameters):
        assert not values.any()
