"""The spectrum gives the embeddings back, and learned layers read them at one scale."""

import numpy as np
import pytest

from models.core.adapter import Spectrum
from tests.models.conftest import Make, numbers


def test_spectrum_gives_the_embeddings_back(spectrum: Spectrum, embeddings: np.ndarray) -> None:
    np.testing.assert_allclose(numbers(spectrum.embeddings()), embeddings, atol=1e-6)
    np.testing.assert_allclose(numbers(spectrum.centred.embeddings()), embeddings, atol=1e-6)


@pytest.mark.parametrize("adapter", ["morec", "unisrec", "rlmrec", "llm_esr"])
def test_layers_on_the_text_read_entries_of_root_mean_square_one(make: Make, embeddings: np.ndarray, adapter: str) -> None:
    """Entries of unit rows with 24 columns have a root mean square of 1 / sqrt(24)."""
    read = numbers(make(adapter).adapter.E)
    np.testing.assert_allclose(read, np.sqrt(24) * embeddings, atol=1e-5)
    assert np.sqrt((read**2).mean()) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(numbers(make(adapter, input_scale="unit").adapter.E), embeddings, atol=1e-6)
