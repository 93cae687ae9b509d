"""MoRec, compared with its closed form."""

import numpy as np
import torch
from scipy.special import erf

from tests.models.conftest import Make, numbers, steps


def test_morec_is_gelu_of_a_linear_map(make: Make, embeddings: np.ndarray) -> None:
    adapter = make("morec").adapter.double()
    torch.nn.init.normal_(adapter.dense.bias)
    z = np.sqrt(24) * embeddings @ numbers(adapter.dense.weight).T + numbers(adapter.dense.bias)
    np.testing.assert_allclose(numbers(adapter.table()), z * (1 + erf(z / np.sqrt(2))) / 2, rtol=1e-6, atol=1e-6)


def test_morec_entries_stay_above_the_minimum_of_gelu(make: Make, sequences: torch.Tensor) -> None:
    model = make("morec")
    steps(model, sequences, 30)
    table = model.adapter.table().detach()
    assert float(table.min()) >= -0.1700
    assert float(table.max()) > 0.1700, "the table has moved"
