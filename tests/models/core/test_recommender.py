"""The mean over targets; building only some rows of the item table, as for large catalogues, compared with the whole table."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import models.core.recommender
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.core.adapter import Adapter, Spectrum
from models.core.recommender import Recommender
from models.losses import LOSSES
from models.losses.info_nce import draw_negatives, info_nce

Make = Callable[..., Recommender]
BY_ROW = [name for name in ADAPTERS if ADAPTERS.load(name).per_item]
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in BY_ROW),
    *(
        (name, {"fusion": fusion})
        for name in ("morec", "unisrec", "whitenrec", "spectran")
        for fusion in ("none", "add", "concat")
    ),
    *(("spectran", {"variant": v}) for v in ("without_attention", "principal_sigma", "principal_identity", "without_encoding")),
    ("spectran", {"center": True}),
    ("spectran", {"fusion": "concat", "variant": "without_attention"}),
    *((name, {"input_scale": "unit"}) for name in ("morec", "unisrec", "llm_esr")),
    ("whitenrec", {"head": "linear"}),
    ("llm_esr", {"cross_attention": False}),
]


def trained_by(model: Recommender, sequences: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of a batch without noise, and all gradients as dense tensors."""
    model.eval()
    model.zero_grad(set_to_none=True)
    loss, _ = model.loss(sequences, torch.Generator().manual_seed(3))
    loss.backward()
    given = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {name: grad.to_dense() if grad.is_sparse else grad for name, grad in given.items()}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_loss_is_the_plain_mean_over_the_targets_of_a_batch(make: Make, sequences: torch.Tensor, backbone: str) -> None:
    model = make("base", backbone).eval()
    loss, count = model.loss(sequences, torch.Generator().manual_seed(3))
    draws = torch.Generator().manual_seed(3)
    tokens, targets = model.backbone.training_examples(sequences, draws)
    predicted = targets != model.adapter.n_items
    table = model.adapter.table()
    negatives = draw_negatives(targets[predicted], len(table), 7, draws)
    expected = info_nce(model.encode(tokens, table)[predicted], table, targets[predicted], negatives, 0.07)
    assert count == len(expected)
    torch.testing.assert_close(loss, expected.mean())


def test_an_adapter_with_a_loss_over_all_items_has_no_rows() -> None:
    over_all = {name for name in ADAPTERS if ADAPTERS.load(name).auxiliary_loss is not Adapter.auxiliary_loss}
    assert "rlmrec" in over_all
    assert not over_all & set(BY_ROW)
    assert {"base", "morec", "unisrec", "llm_esr", "whitenrec", "llminit", "alphafuse", "spectran"} <= set(BY_ROW)


@pytest.mark.parametrize(("adapter", "options"), OPTIONS)
def test_rows_are_those_of_the_table(make: Make, spectrum: Spectrum, adapter: str, options: dict[str, Any]) -> None:
    built = make(adapter, **options).eval().adapter
    tensors = dict([*built.named_parameters(), *built.named_buffers()])
    with_rows = {name for name, tensor in tensors.items() if tensor.ndim and len(tensor) == spectrum.n_items}
    assert with_rows == set(built.per_item) & set(tensors), "a tensor with a row for every item that is not named stays whole"
    items = torch.tensor([7, 0, spectrum.n_items - 1, 7])
    torch.testing.assert_close(built.rows(items, sparse=False), built.table()[items], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adapter", BY_ROW)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_on_rows_has_the_loss_and_the_gradients_of_one_on_all(
    make: Make, sequences: torch.Tensor, monkeypatch: pytest.MonkeyPatch, adapter: str, backbone: str, sparse: bool
) -> None:
    model = make(adapter, backbone)
    whole = trained_by(model, sequences)
    monkeypatch.setattr(models.core.recommender, "ROWS_FROM", 0)
    model.sparse = sparse
    rows = trained_by(model, sequences)
    torch.testing.assert_close(rows[0], whole[0], rtol=1e-5, atol=1e-6)
    assert rows[1].keys() == whole[1].keys()
    for name, gradient in whole[1].items():
        torch.testing.assert_close(rows[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_rows_are_made_where_the_catalogue_is_large_beside_the_batch(make: Make, sequences: torch.Tensor) -> None:
    model = make("spectran")
    assert model.builds_rows(model.adapter.n_items // 4)
    assert not model.builds_rows(model.adapter.n_items)
    model.objective = LOSSES.load("cross_entropy")(0.07, 7)
    assert not model.builds_rows(1), "the full softmax needs all"
    assert not make("rlmrec").builds_rows(1), "so does the mean over all items"


def test_a_sparse_gradient_has_the_rows_that_the_batch_names_and_the_rest_is_not_touched(
    make: Make, sequences: torch.Tensor
) -> None:
    model = make("spectran")
    model.sparse = True
    assert [id(p) for p in model.row_parameters()] == [id(model.adapter.id_embedding)]
    grouped = [p for group in model.parameter_groups(0.0) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()} - {id(model.adapter.id_embedding)}
    before = model.adapter.id_embedding.detach().clone()
    optimiser = torch.optim.SparseAdam(model.row_parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad(set_to_none=True)
        model.loss(sequences[:1], torch.Generator().manual_seed(0))[0].backward()
        optimiser.step()
    gradient = model.adapter.id_embedding.grad.coalesce()
    assert len(gradient.indices()[0]) < model.adapter.n_items
    moved = (model.adapter.id_embedding != before).any(1).nonzero().flatten()
    assert moved.tolist() == gradient.indices()[0].tolist()
    moments = optimiser.state[model.adapter.id_embedding]["exp_avg"].abs().sum(1).nonzero().flatten()
    assert moments.tolist() == moved.tolist()
