"""Users' states from any item table, compared with the trained model's."""

from pathlib import Path

import pytest
import torch

from pipeline.serving.recommender import Recommender

pytestmark = pytest.mark.xdist_group("serving")


def test_the_exported_program_has_the_checkpoints_states(packaged: Path, checkpoint: Recommender) -> None:
    program = torch.export.load(packaged / "encoder.pt2").module()
    n_items = len(checkpoint.item_ids)
    for users in (1, 5):
        items = checkpoint.users["items"].to_list()[:users]
        history = torch.tensor([[n_items] * (10 - len(row[-10:])) + row[-10:] for row in items])
        with torch.no_grad():
            expected = checkpoint.model.next_item_states(history, checkpoint.table)
        torch.testing.assert_close(program(history, checkpoint.table), expected, atol=1e-5, rtol=0)
