"""LLMInit, compared with variances by numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.core.adapter import Spectrum
from tests.models.conftest import Make, numbers, steps


def test_llminit_starts_as_the_most_variable_columns_in_order(make: Make, embeddings: np.ndarray) -> None:
    adapter = make("llminit").adapter
    columns = adapter.columns.numpy()
    assert (np.diff(columns) > 0).all()
    np.testing.assert_allclose(numbers(adapter.table()), embeddings[:, columns], atol=1e-6)
    variance = embeddings.var(0)
    assert variance[columns].min() >= np.delete(variance, columns).max()


@pytest.mark.parametrize(("share", "count"), [(0.2, 12), (0.05, 3), (0.001, 2), (1.0, 60)])
def test_llminit_can_take_variances_over_the_most_popular_items(
    make: Make, spectrum: Spectrum, embeddings: np.ndarray, share: float, count: int
) -> None:
    """The most popular items have the highest ids; numpy's variances over them choose the columns."""
    popular = replace(spectrum, load_popularity=lambda: torch.arange(60))
    columns = make("llminit", on=popular, popular_share=share).adapter.columns.tolist()
    variance = embeddings[60 - count :].var(0)
    assert columns == sorted(np.argsort(variance)[-8:].tolist())
    assert (columns == make("llminit").adapter.columns.tolist()) == (count == 60)


def test_llminit_takes_the_first_of_equally_popular_items(make: Make, spectrum: Spectrum, embeddings: np.ndarray) -> None:
    counts = torch.full((60,), 5)
    counts[40] = 6
    popular = replace(spectrum, load_popularity=lambda: counts)
    columns = make("llminit", on=popular, popular_share=0.1).adapter.columns.tolist()
    assert columns == sorted(np.argsort(embeddings[[40, 0, 1, 2, 3, 4]].var(0))[-8:].tolist())


def test_llminit_can_be_rescaled_by_one_factor(make: Make) -> None:
    raw, scaled = make("llminit").adapter.table(), make("llminit", std=0.02).adapter.table()
    assert scaled.std().item() == pytest.approx(0.02, rel=1e-5)
    ratio = scaled / raw
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_llminit_trains_its_whole_table(make: Make, sequences: torch.Tensor) -> None:
    model = make("llminit")
    before = model.adapter.table().detach().clone()
    steps(model, sequences, 20)
    assert (model.adapter.table() != before).float().mean() > 0.95
