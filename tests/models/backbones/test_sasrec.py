"""SASRec, compared with torch's functions."""

import numpy as np
import pytest
import torch
from torch import nn

from models.backbones import sasrec
from models.core.layout import Layout
from tests.models.conftest import HIDDEN, Make, numbers


@pytest.mark.parametrize("residual", ["normalised", "plain"])
def test_sasrec_block_has_the_chosen_residual_layout(layout: Layout, residual: str) -> None:
    """q = LN(x); z = q + MHA(q, x, x); y = LN(z); then y + W_2 ReLU(W_1 y), or z + W_2 ReLU(W_1 y); in float64 by numpy."""
    torch.manual_seed(0)
    module = sasrec.Block(8, 1, 0.0, residual)
    for norm in (module.norm_attention, module.norm_feed_forward):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 8)

    def linear(layer: nn.Linear, z: np.ndarray) -> np.ndarray:
        return z @ numbers(layer.weight).T + numbers(layer.bias)

    def norm(layer: nn.LayerNorm, z: np.ndarray) -> np.ndarray:
        scaled = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-8)
        return scaled * numbers(layer.weight) + numbers(layer.bias)

    q = norm(module.norm_attention, numbers(x))
    key, value = np.split(linear(module.attention.key_value, numbers(x)), 2, axis=-1)
    products = linear(module.attention.query, q) @ key.transpose(0, 2, 1) / np.sqrt(8)
    weights = np.where(HIDDEN.numpy(), 0, np.exp(products))
    attended = weights / weights.sum(-1, keepdims=True) @ value
    z = q + linear(module.attention.output, attended)
    y = norm(module.norm_feed_forward, z)
    expected = (y if residual == "normalised" else z) + linear(module.outer, np.maximum(linear(module.inner, y), 0))
    actual = numbers(module(layout.rows(x), layout))
    np.testing.assert_allclose(actual, numbers(layout.rows(torch.from_numpy(expected))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residual", ["normalised", "plain"])
def test_sasrec_gives_every_block_its_residual_layout(make: Make, residual: str) -> None:
    blocks = make("base", backbone_options={"feed_forward_residual": residual}).backbone.blocks
    assert [block.feed_forward_residual for block in blocks] == [residual, residual]
