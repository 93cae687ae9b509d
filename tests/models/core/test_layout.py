"""Layouts: rows of padding are left out without a difference."""

import pytest
import torch

from models.backbones import BACKBONES
from models.core.layout import Layout
from tests.models.conftest import PADDING, Make


@pytest.mark.parametrize("adapter", ["base", "llm_esr"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("heads", [1, 2])
def test_rows_without_padding_and_with_it_give_the_same_loss_and_gradients(
    make: Make, sequences: torch.Tensor, monkeypatch: pytest.MonkeyPatch, adapter: str, backbone: str, heads: int
) -> None:
    """Packed as on a CPU, dense as on a GPU. Negatives are fixed, because the two draw different numbers of them."""
    monkeypatch.setattr("models.losses.info_nce.draw_negatives", lambda t, n, m, g: (t[:, None] + torch.arange(1, 1 + m)) % n)
    found = []
    for packed in (True, False):
        options = {"dropout": 0.0} if adapter == "llm_esr" else {}
        fields = BACKBONES.load(backbone).Config.model_fields
        wanted = {name: value for name, value in {"dropout": 0.0, "heads": heads}.items() if name in fields}
        model = make(adapter, backbone, backbone_options=wanted, **options)
        monkeypatch.setattr(
            model, "layout", lambda tokens, m=model, p=packed: Layout(tokens != PADDING, m.backbone.causal, packed=p)
        )
        loss, count = model.loss(sequences, torch.Generator().manual_seed(0))
        loss.backward()
        found.append((loss, count, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*found)
