"""Base: the ID table."""

import pytest

from tests.models.conftest import Make


def test_base_table_is_the_embedding_weight_itself(make: Make) -> None:
    adapter = make("base").adapter
    assert adapter.table() is adapter.id_embedding
    assert float(make("base", dim=64, id_std=0.5).adapter.table().detach().std()) == pytest.approx(0.5, rel=0.05)
