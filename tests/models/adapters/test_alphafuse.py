"""AlphaFuse, compared with the authors' computation."""

import numpy as np
import pytest
import torch

from tests.models.conftest import Make, numbers, steps


def test_alphafuse_semantics_are_the_authors_standardised_components(make: Make, embeddings: np.ndarray) -> None:
    """Compared with (X - mean) P Lambda^(-1/2) of X = 40 E by the SVD of np.cov, up to the signs of columns."""
    x = 40 * embeddings
    vectors, values, _ = np.linalg.svd(np.cov(x, rowvar=False))
    reference = (x - x.mean(0)) @ vectors[:, :8] / np.sqrt(values[:8])
    actual = numbers(make("alphafuse").adapter.semantics)
    correlation = np.corrcoef(actual, reference, rowvar=False)[:8, 8:].diagonal()
    np.testing.assert_allclose(np.abs(correlation), 1, atol=1e-6)
    np.testing.assert_allclose(actual * np.sign(correlation), reference, atol=1e-4)


def test_alphafuse_semantics_have_identity_covariance_and_mean_zero(make: Make) -> None:
    semantics = numbers(make("alphafuse").adapter.semantics)
    np.testing.assert_allclose(np.cov(semantics, rowvar=False), np.eye(8), atol=1e-4)
    np.testing.assert_allclose(semantics.mean(0), 0, atol=1e-6)


@pytest.mark.parametrize(("null_share", "frozen"), [(0.25, 6), (0.5, 4), (0.75, 2), (1.0, 0)])
def test_alphafuse_trains_the_null_columns_only(make: Make, sequences: torch.Tensor, null_share: float, frozen: int) -> None:
    model = make("alphafuse", null_share=null_share)
    assert torch.equal(model.adapter.table(), model.adapter.semantics), "with zeros the table starts as S"
    steps(model, sequences, 10)
    moved = (model.adapter.table() != model.adapter.semantics).any(dim=0)
    assert moved.tolist() == [False] * frozen + [True] * (8 - frozen)


def test_alphafuse_ids_can_start_normal(make: Make) -> None:
    ids = make("alphafuse", dim=16, id_init="normal").adapter.id_embedding
    assert float(ids.detach().std()) == pytest.approx(1, rel=0.1)
