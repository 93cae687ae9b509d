"""Normalisation."""

import torch

from models.core.loss import normalised


def test_a_zero_vector_has_cosine_zero_and_no_nan() -> None:
    zero = torch.zeros(1, 4, requires_grad=True)
    (normalised(zero) @ torch.ones(4, 1)).sum().backward()
    assert zero.grad.isfinite().all()
    assert not normalised(zero).any()
