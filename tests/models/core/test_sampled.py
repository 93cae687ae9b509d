"""Sampled products, weighted sums and dropout, compared with dense arithmetic and counts."""

import pytest
import torch

from models.core.sampled import products, weighted_sums


@pytest.fixture
def index(generator: torch.Generator) -> torch.Tensor:
    """Some table rows are chosen twice by one row, some by none."""
    return torch.randint(9, (6, 5), generator=generator) * 2


def test_products_and_their_gradients_are_those_of_gathered_rows(index: torch.Tensor, generator: torch.Generator) -> None:
    rows, table = (torch.randn(n, 4, generator=generator, requires_grad=True) for n in (6, 20))
    upstream = torch.randn(6, 5, generator=generator)
    expected = torch.einsum("td,tmd->tm", rows, table[index])
    found = products(rows, table, index)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * upstream).sum(), (rows, table)),
        torch.autograd.grad((expected * upstream).sum(), (rows, table)),
    )


def test_mixtures_and_their_gradients_are_those_of_gathered_rows(index: torch.Tensor, generator: torch.Generator) -> None:
    weights, table = torch.randn(6, 5, generator=generator), torch.randn(20, 4, generator=generator)
    weights.requires_grad_(), table.requires_grad_()
    upstream = torch.randn(6, 4, generator=generator)
    expected = torch.einsum("tm,tmd->td", weights, table[index])
    found = weighted_sums(weights, table, index)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * upstream).sum(), (weights, table)),
        torch.autograd.grad((expected * upstream).sum(), (weights, table)),
    )


def test_no_rows_are_no_products() -> None:
    table, index = torch.randn(3, 4, requires_grad=True), torch.zeros(0, 5, dtype=torch.long)
    (products(torch.zeros(0, 4), table, index).sum() + weighted_sums(torch.zeros(0, 5), table, index).sum()).backward()
    assert not table.grad.any()


def test_columns_of_a_larger_tensor_are_read_where_they_are(index: torch.Tensor) -> None:
    """Keys and values are halves of one projection."""
    wide = torch.arange(160.0).reshape(20, 8)
    torch.testing.assert_close(
        products(wide[:6, :4], wide[:, 4:], index), torch.einsum("td,tmd->tm", wide[:6, :4], wide[:, 4:][index])
    )
    weights = torch.ones(6, 10)[:, ::2]
    torch.testing.assert_close(weighted_sums(weights, wide[:, 4:], index), wide[:, 4:][index].sum(1))
