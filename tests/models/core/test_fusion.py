"""Fusion: IDs and text are added or put side by side."""

import pytest
import torch

from tests.models.conftest import Make


@pytest.mark.parametrize("adapter", ["morec", "unisrec", "rlmrec", "whitenrec", "spectran"])
def test_fusion_adds_or_concatenates_the_same_text(make: Make, adapter: str) -> None:
    added = make(adapter, fusion="add").adapter.eval()
    torch.testing.assert_close(added.table(), added.id_embedding + added.semantic_table())
    beside = make(adapter, fusion="concat").adapter.eval()
    torch.testing.assert_close(beside.table()[:, :4], beside.id_embedding)
    torch.testing.assert_close(beside.table()[:, 4:], beside.semantic_table())
    assert beside.semantic_table().abs().sum() > 0
