"""Attention, compared with torch's."""

import pytest
import torch
from torch import nn

from models.core.attention import Attention
from models.core.layout import Layout
from tests.models.conftest import HIDDEN, copy_attention


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_torchs_multi_head_attention(layout: Layout, heads: int) -> None:
    torch.manual_seed(0)
    module = Attention(8, heads)
    reference = nn.MultiheadAttention(8, heads, batch_first=True)
    copy_attention(reference, module)
    query, x = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    expected, _ = reference(query, x, x, attn_mask=HIDDEN)
    torch.testing.assert_close(module(layout.rows(query), layout.rows(x), layout), layout.rows(expected))
