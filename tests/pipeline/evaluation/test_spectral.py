"""Spectral measures, compared with numpy and closed forms."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.spectral import covariance_spectrum, cumulative_share, effective_rank, top_share


@pytest.fixture
def table() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(5 + rng.normal(size=(200, 16)) * np.geomspace(1, 0.01, 16)).float()


def test_spectrum_is_that_of_numpys_covariance(table: torch.Tensor) -> None:
    expected = np.linalg.svd(np.cov(table.double().numpy(), rowvar=False), compute_uv=False)
    np.testing.assert_allclose(covariance_spectrum(table), expected, rtol=1e-8)


def test_figures_are_those_of_numpy(table: torch.Tensor) -> None:
    share = np.linalg.svd(np.cov(table.double().numpy(), rowvar=False), compute_uv=False)
    share = share / share.sum()
    values = covariance_spectrum(table)
    np.testing.assert_allclose(cumulative_share(values), share.cumsum(), rtol=1e-8)
    assert effective_rank(values) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert top_share(values) == pytest.approx(share[:10].sum())
    assert top_share(values, 3) == pytest.approx(share[:3].sum())


@pytest.mark.parametrize("directions", [1, 4, 16])
def test_k_equal_directions_have_effective_rank_k(directions: int) -> None:
    values = torch.tensor([2.0] * directions + [0.0] * (16 - directions), dtype=torch.float64)
    assert effective_rank(values) == pytest.approx(directions)


def test_equal_rows_have_no_direction() -> None:
    values = covariance_spectrum(torch.full((10, 4), 3.0))
    assert effective_rank(values) == 0
    assert cumulative_share(values).tolist() == [0, 0, 0, 0]
