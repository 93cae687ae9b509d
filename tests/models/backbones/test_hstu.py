"""HSTU, compared with the closed form."""

import numpy as np
import pytest
import torch

from models.backbones import hstu
from models.core.layout import Layout
from tests.models.conftest import Make, assert_half_dropped, numbers


def closed_form(block: hstu.Block, x: np.ndarray, n: int) -> np.ndarray:
    """Return W_o (u * LN(sum_j silu(q_i k_j) / n v_j)) + x of one sequence, in float64, for one head and no bias. x: (P, d)"""

    def silu(z: np.ndarray) -> np.ndarray:
        return z / (1 + np.exp(-z))

    def norm(z: np.ndarray) -> np.ndarray:
        return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)

    u, v, q, k = np.split(silu(norm(x) @ numbers(block.weight)), 4, axis=1)
    gated = u * norm(np.tril(silu(q @ k.T) / n) @ v)
    return gated @ numbers(block.output.weight).T + numbers(block.output.bias) + x


@pytest.mark.parametrize("packed", [True, False])
def test_hstu_block_on_two_tokens_is_the_closed_form(packed: bool) -> None:
    torch.manual_seed(0)
    block = hstu.Block(2, 1, 0.0, positions=2, relative_bias=False)
    with torch.no_grad():
        block.weight.copy_(torch.randn(2, 8))
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    layout = Layout(torch.ones(1, 2, dtype=torch.bool), causal=True, packed=packed)
    np.testing.assert_allclose(numbers(block(x, layout)), closed_form(block, numbers(x), 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_hstu_divides_by_the_longest_history_not_by_the_length_of_this_one(packed: bool) -> None:
    """One history of two items and one of five: with small weights, the epsilon of the layer norm preserves their scale."""
    torch.manual_seed(0)
    block = hstu.Block(4, 1, 0.0, positions=5, relative_bias=False)
    with torch.no_grad():
        block.weight.copy_(torch.randn(4, 16) * 0.1)
    present = torch.tensor([[False, False, False, True, True], [True] * 5])
    x = torch.randn(2, 5, 4) * present.unsqueeze(2)
    layout = Layout(present, causal=True, packed=packed)
    found = layout.padded(block(layout.rows(x), layout))
    for sequence, state, there in zip(x, found, present, strict=True):
        np.testing.assert_allclose(numbers(state[there]), closed_form(block, numbers(sequence[there]), 5), rtol=1e-4, atol=1e-5)


def test_hstu_drops_elements_of_the_gated_output_before_the_last_layer(layout: Layout) -> None:
    torch.manual_seed(0)
    block, seen = hstu.Block(64, 1, 0.5, positions=4, relative_bias=True), []
    block.output.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x = torch.randn(12, 64)
    for training in (True, False):
        block.train(training)(x, layout)
    assert_half_dropped(*seen)


@pytest.mark.parametrize("packed", [True, False])
def test_hstu_relative_bias_belongs_to_distances(packed: bool) -> None:
    """A bias of +b on distance 1 acts on every pair of neighbours and on no other pair."""
    torch.manual_seed(0)
    block = hstu.Block(8, 1, 0.0, positions=3, relative_bias=True)
    with torch.no_grad():
        block.weight[:, :16].normal_()
        block.weight[:, 16:] = 0  # q k^T = 0, so that a = silu(bias) / n
        block.bias.zero_()
        block.bias[3] = 5.0  # distance i - j = 1 of -2..2
    layout = Layout(torch.ones(1, 3, dtype=torch.bool), causal=True, packed=packed)
    x = torch.randn(3, 8)
    changed = x.clone()
    changed[0] = -x[0]
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
