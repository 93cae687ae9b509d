"""UniSRec, compared with the authors' gates and a float64 reference."""

import numpy as np
import pytest
import torch

from models.adapters import unisrec
from models.core.adapter import Spectrum
from models.core.dropout import dropout
from tests.models.conftest import Make, assert_half_dropped, numbers, steps


def test_unisrec_gates_start_at_one_eighth(make: Make) -> None:
    assert torch.equal(make("unisrec").adapter.eval().gates(), torch.full((60, 8), 1 / 8))


def test_unisrec_noise_and_dropout_act_in_training_only(make: Make) -> None:
    adapter = make("unisrec").adapter.eval()
    assert torch.equal(adapter.table(), adapter.table())
    adapter.train()
    assert not torch.equal(adapter.table(), adapter.table())
    assert not torch.equal(adapter.gates(), adapter.gates())


def test_unisrec_drops_entries_of_the_text_in_training(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal gates, which add no noise: half of the entries x are zero in training, the others double.

    So the variance of a sum of products x w is the sum of x^2 w^2, and that of a mean of 400 draws is 1 / 400 of it.
    """
    adapter = make("unisrec", dropout=0.5, fusion="none").adapter
    monkeypatch.setattr(adapter, "gates", lambda: torch.full((60, 8), 1 / 8))
    evaluated, means = adapter.eval().table().detach(), []
    assert not torch.equal(adapter.train().table(), evaluated)
    torch.manual_seed(0)
    for _ in range(400):
        means.append(adapter.table().detach())
    error = torch.stack(means).mean(0) - evaluated
    variance = (numbers(adapter.E) ** 2 @ numbers(adapter.weight).mean(1) ** 2).sum() / 400
    assert float(error.norm()) == pytest.approx(variance**0.5, rel=0.15), "masks are drawn anew"


def test_unisrec_drops_the_text_of_the_experts_but_neither_that_of_the_gates_nor_the_biases(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise, the gates of training are those of evaluation."""
    adapter, dropped = make("unisrec", dropout=0.5, fusion="none").adapter, []
    torch.nn.init.normal_(adapter.gate)
    torch.nn.init.normal_(adapter.bias)
    gates = numbers(adapter.eval().gates())
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(unisrec, "dropout", lambda *given: (dropped.append(dropout(*given)), dropped[-1])[1])
    table = adapter.train().table()
    assert len(dropped) == 1
    assert_half_dropped(dropped[0], adapter.E)
    x, weight, bias = (numbers(tensor) for tensor in (dropped[0], adapter.weight, adapter.bias))
    expected = sum(gates[:, [e]] * ((x - bias[e]) @ weight[:, e]) for e in range(8))
    np.testing.assert_allclose(numbers(table), expected, atol=1e-5)


@pytest.mark.parametrize(("weight", "deviation"), [(0.0, np.log(2) + 0.01), (-1e3, 0.01)])
def test_unisrec_gate_noise_has_the_authors_deviation(make: Make, spectrum: Spectrum, weight: float, deviation: float) -> None:
    """Logits are initially noise with standard deviation ln 2 + 0.01; if x W_n is far below zero, it is 0.01."""
    adapter = make("unisrec").adapter.train()
    with torch.no_grad():
        adapter.gate_noise.copy_(weight * spectrum.centred.mean[:, None].expand(-1, 8))
    torch.manual_seed(0)
    logits = torch.stack([adapter.gates().detach().log() for _ in range(200)])
    differences = logits[..., 0] - logits[..., 1]
    assert float(differences.std()) == pytest.approx(2**0.5 * deviation, rel=0.03)


def test_unisrec_is_the_gated_sum_of_its_experts(make: Make, embeddings: np.ndarray, sequences: torch.Tensor) -> None:
    model = make("unisrec", experts=3)
    steps(model, sequences)
    adapter = model.adapter.eval()
    weight, bias = numbers(adapter.weight), numbers(adapter.bias)
    x = np.sqrt(24) * embeddings
    logits = np.exp(x @ numbers(adapter.gate))
    gates = logits / logits.sum(1, keepdims=True)
    expected = sum(gates[:, [e]] * ((x - bias[e]) @ weight[:, e]) for e in range(3))
    assert np.abs(bias).min(1).max() > 0, "the biases have moved"
    np.testing.assert_allclose(numbers(adapter.semantic_table()), expected, atol=1e-5)
