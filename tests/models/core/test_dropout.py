"""Dropout, compared with counts."""

import pytest
import torch

from models.core.dropout import dropout


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout_drops_the_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(999, 1001, requires_grad=True)
    y = dropout(x, p, training=True)
    y.sum().backward()
    kept = y.detach() != 0
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert float((~kept).float().mean()) == pytest.approx(p, abs=4 * deviation)
    assert float((~kept).float().mean(0).std()) == pytest.approx((p * (1 - p) / 999) ** 0.5, rel=0.1), "no column is favoured"
    assert y.detach()[kept].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4)
    assert torch.equal(x.grad, y.detach())
    together = (kept[:, 1:] & kept[:, :-1]).float().mean()
    assert float(together) == pytest.approx((1 - p) ** 2, abs=0.002), "neighbours are independent"


def test_dropout_follows_the_seed_and_stops_in_evaluation() -> None:
    x = torch.randn(7, 5)
    first, second = ((torch.manual_seed(3), dropout(x, 0.3, training=True))[1] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(second, dropout(x, 0.3, training=True))
    assert dropout(x, 0.3, training=False) is x
