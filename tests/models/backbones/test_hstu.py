"""HSTU, compared with the closed form."""

import numpy as np
import pytest
import torch

from models.backbones import hstu
from models.core.layout import Layout
from tests.models.conftest import Make, numbers


@pytest.mark.parametrize("packed", [True, False])
def test_hstu_block_on_two_tokens_is_the_closed_form(packed: bool) -> None:
    """With one head and no bias: y = W_o (u * LN(sum_j silu(q_i k_j) / n v_j)) + x, in float64."""
    torch.manual_seed(0)
    block = hstu.Block(2, 1, 0.0, positions=2, relative_bias=False)
    with torch.no_grad():
        block.weight.copy_(torch.randn(2, 8))
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    layout = Layout(torch.ones(1, 2, dtype=torch.bool), causal=True, packed=packed)

    def silu(z: np.ndarray) -> np.ndarray:
        return z / (1 + np.exp(-z))

    def norm(z: np.ndarray) -> np.ndarray:
        return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)

    u, v, q, k = np.split(silu(norm(numbers(x)) @ numbers(block.weight)), 4, axis=1)
    first = silu(q[0] @ k[0]) / 2 * v[0]
    second = silu(q[1] @ k[0]) / 2 * v[0] + silu(q[1] @ k[1]) / 2 * v[1]
    gated = u * norm(np.stack([first, second]))
    expected = gated @ numbers(block.output.weight).T + numbers(block.output.bias) + numbers(x)
    np.testing.assert_allclose(numbers(block(x, layout)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_hstu_relative_bias_belongs_to_distances(packed: bool) -> None:
    """A bias of +b on distance 1 acts on every pair of neighbours and on no other pair."""
    block = hstu.Block(2, 1, 0.0, positions=3, relative_bias=True)
    with torch.no_grad():
        block.weight.zero_()
        block.weight[:, 2:4] = torch.randn(2, 2)  # q k^T = 0, so that a = silu(bias) / n
        block.weight[:, 0:2] = torch.randn(2, 2)
        block.bias.zero_()
        block.bias[3] = 5.0  # distance i - j = 1 of -2..2
    layout = Layout(torch.ones(1, 3, dtype=torch.bool), causal=True, packed=packed)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[0] = torch.tensor([2.0, -1.0]) if x[0, 0] < x[0, 1] else torch.tensor([-1.0, 2.0])
    difference = (block(changed, layout) - block(x, layout)).abs().sum(-1)
    assert difference[1] > 1e-3, "the neighbour sees it"
    assert float(difference[2].detach()) == pytest.approx(0, abs=1e-6), "two steps on, the bias is zero and so is the weight"


@pytest.mark.parametrize(("scaled", "factor"), [(True, 8**0.5), (False, 1.0)])
def test_hstu_reads_item_vectors_times_root_d_plus_positions(make: Make, scaled: bool, factor: float) -> None:
    """With output layers of zero, blocks add nothing, so the states are the input."""
    model = make("base", "hstu", backbone_options={"scale_input": scaled}).eval()
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.output.weight.zero_()
            block.output.bias.zero_()
    items = torch.tensor([[7, 8, 9, 1, 2]])
    table = model.adapter.table()
    expected = factor * numbers(table)[items[0]] + numbers(model.backbone.position)
    np.testing.assert_allclose(numbers(model.encode(items, table))[0], expected, rtol=1e-5, atol=1e-6)


def test_hstu_can_do_without_relative_bias(make: Make) -> None:
    model = make("base", "hstu", backbone_options={"relative_bias": False})
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias") and "output" not in name]
