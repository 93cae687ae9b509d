"""SpecMLP, compared with its equation in NumPy and with WhitenRec, whose head it widens."""

import numpy as np
import torch

from tests.models.conftest import Make, numbers


def test_spec_mlp_is_its_equation(make: Make) -> None:
    adapter = make("spec_mlp", hidden=40).adapter.eval()
    with torch.no_grad():  # biases start at zero
        adapter.layers[0].bias.normal_()
        adapter.layers[1].bias.normal_()
    x = numbers(adapter.whitened)
    hidden = np.maximum(x @ numbers(adapter.layers[0].weight).T + numbers(adapter.layers[0].bias), 0)
    expected = np.maximum(hidden @ numbers(adapter.layers[1].weight).T + numbers(adapter.layers[1].bias), 0)
    assert hidden.shape[1] == 40
    np.testing.assert_allclose(numbers(adapter.table()), expected, atol=1e-5)


def test_spec_mlp_reads_what_whitenrec_reads(make: Make) -> None:
    theirs, ours = make("whitenrec").adapter, make("spec_mlp").adapter
    assert torch.equal(ours.whitened, theirs.whitened)
    assert ours.report() == theirs.report()


def test_spec_mlp_with_a_hidden_layer_as_wide_as_the_table_is_whitenrec(make: Make) -> None:
    theirs, ours = make("whitenrec", dim=8).adapter.eval(), make("spec_mlp", dim=8, hidden=8).adapter.eval()
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.table(), theirs.table())


def test_spec_mlp_drops_elements_in_training_only(make: Make) -> None:
    adapter = make("spec_mlp").adapter
    assert torch.equal(adapter.eval().table(), adapter.table())
    assert not torch.equal(adapter.train().table(), adapter.table())
