"""SpecMLP, compared with its equation in NumPy and with WhitenRec, whose head it widens."""

import numpy as np
import torch
from torch.nn import functional as F

from tests.models.conftest import Make, numbers


def test_spec_mlp_is_its_equation(make: Make) -> None:
    adapter = make("spec_mlp", hidden=40).adapter.eval()
    with torch.no_grad():  # biases start at zero
        adapter.layers[0].bias.normal_()
        adapter.layers[1].bias.normal_()
    x = numbers(adapter.whitened)
    hidden = np.maximum(x @ numbers(adapter.layers[0].weight).T + numbers(adapter.layers[0].bias), 0)
    z = np.maximum(hidden @ numbers(adapter.layers[1].weight).T + numbers(adapter.layers[1].bias), 0)
    assert hidden.shape[1] == 40
    expected = z / np.linalg.norm(z, axis=1, keepdims=True) * z.shape[1] ** 0.5
    np.testing.assert_allclose(numbers(adapter.table()), expected, atol=1e-5)


def test_spec_mlp_reads_what_whitenrec_reads(make: Make) -> None:
    theirs, ours = make("whitenrec").adapter, make("spec_mlp").adapter
    assert torch.equal(ours.whitened, theirs.whitened)
    assert ours.report() == theirs.report()


def test_spec_mlp_with_a_hidden_layer_as_wide_as_the_table_has_the_directions_of_whitenrec(make: Make) -> None:
    theirs, ours = make("whitenrec", dim=8).adapter.eval(), make("spec_mlp", dim=8, hidden=8).adapter.eval()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.table(), F.normalize(theirs.table(), dim=1) * 8**0.5)


def test_item_vectors_of_spec_mlp_have_one_length_however_large_its_weights(make: Make) -> None:
    adapter = make("spec_mlp", dim=16).adapter.eval()
    before = adapter.table()
    with torch.no_grad():
        for layer in adapter.layers:
            layer.weight.mul_(10)  # the biases are zero
    torch.testing.assert_close(adapter.table().norm(dim=1), torch.full((len(before),), 4.0))
    torch.testing.assert_close(adapter.table(), before)


def test_a_row_of_spec_mlp_without_an_active_column_is_zero(make: Make) -> None:
    adapter = make("spec_mlp").adapter
    with torch.no_grad():
        adapter.layers[1].bias.fill_(-1e6)
    table = adapter.table()
    table.sum().backward()
    assert not table.any()
    assert all(parameter.grad.isfinite().all() for parameter in adapter.parameters())


def test_spec_mlp_drops_elements_in_training_only(make: Make) -> None:
    adapter = make("spec_mlp").adapter
    assert torch.equal(adapter.eval().table(), adapter.table())
    assert not torch.equal(adapter.train().table(), adapter.table())
