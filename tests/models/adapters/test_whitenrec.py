"""WhitenRec, compared with ZCA whitening by numpy."""

import numpy as np
import pytest
import torch
from scipy.special import erf

from common.errors import UserError
from models.core.adapter import Spectrum
from tests.models.conftest import Decompose, Make, assert_half_dropped, numbers


def test_whitenrec_input_has_mean_zero_and_identity_covariance(make: Make, spectrum: Spectrum) -> None:
    whitened = numbers(make("whitenrec", whiten_rank=spectrum.centred.rank).adapter.whitened)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.cov(whitened, rowvar=False), np.eye(whitened.shape[1]), atol=1e-3)


def test_whitenrec_input_is_zca_up_to_a_rotation(make: Make, embeddings: np.ndarray) -> None:
    """The inner products between items are those of X P Lambda^(-1/2) P^T, with the eigenvectors P of the covariance."""
    values, vectors = np.linalg.eigh(np.cov(embeddings, rowvar=False))
    zca = (embeddings - embeddings.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T
    whitened = numbers(make("whitenrec", whiten_rank=24).adapter.whitened)
    np.testing.assert_allclose(whitened @ whitened.T, zca @ zca.T, atol=1e-3)


def test_whitenrec_input_does_not_depend_on_the_scale_of_the_embeddings(
    make: Make, embeddings: np.ndarray, decompose: Decompose
) -> None:
    actual = make("whitenrec").adapter.whitened
    scaled = make("whitenrec", on=decompose(embeddings * 40)).adapter.whitened
    np.testing.assert_allclose(numbers(scaled), numbers(actual), atol=1e-4)


@pytest.mark.parametrize(("items", "rank"), [(60, 24), (49, 24), (48, 12), (20, 5), (3, 1)])
def test_whitenrec_keeps_the_centred_rank_but_a_quarter_of_a_small_catalogue(
    make: Make, embeddings: np.ndarray, decompose: Decompose, items: int, rank: int
) -> None:
    """Embeddings have 24 columns: 49 items are more than twice as many, 48 are not."""
    assert make("whitenrec", on=decompose(embeddings[:items])).adapter.report() == {"whiten_rank": rank}


def test_whitenrec_rank_can_be_chosen_up_to_the_centred_rank(make: Make) -> None:
    assert make("whitenrec", whiten_rank=5).adapter.report() == {"whiten_rank": 5}
    assert make("whitenrec", whiten_rank=24).adapter.report() == {"whiten_rank": 24}
    with pytest.raises(UserError, match=r"whiten_rank is 25, but the centred embeddings have rank 24"):
        make("whitenrec", whiten_rank=25)


def test_whitenrec_heads(make: Make) -> None:
    linear = make("whitenrec", head="linear").adapter
    z = numbers(linear.whitened) @ numbers(linear.layers[0].weight).T
    np.testing.assert_allclose(numbers(linear.table()), z * (1 + erf(z / np.sqrt(2))) / 2, atol=1e-6)
    mlp = make("whitenrec").adapter.eval()
    first = np.maximum(numbers(mlp.whitened) @ numbers(mlp.layers[0].weight).T, 0)
    np.testing.assert_allclose(numbers(mlp.table()), np.maximum(first @ numbers(mlp.layers[1].weight).T, 0), atol=1e-6)
    assert not torch.equal(mlp.train().table(), mlp.table())


@pytest.mark.parametrize("name", ["whitenrec", "spec_mlp"])
def test_the_share_that_is_asked_is_dropped_before_each_layer(make: Make, name: str) -> None:
    """SpecMLP builds on WhitenRec, with its own dropout."""
    adapter, seen = make(name, dim=16, dropout=0.5).adapter.train(), []
    for layer in adapter.layers:
        layer.register_forward_hook(lambda module, given, result: seen.append((given[0], result)))
    adapter.table()
    (first, hidden), (second, _) = seen
    assert_half_dropped(first, adapter.whitened)
    assert_half_dropped(second, hidden.relu())
