"""The artifact with the figures of items held out of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from pipeline.artifacts import read_signed, write_signed
from pipeline.grid import held_out
from pipeline.grid.held_out import read_figures, write_figures
from pipeline.params import load_params

FIGURES = [{"method": "spectran", "ids": "mean", "NDCG@20": 0.125}, {"method": "morec", "ids": "", "NDCG@20": 0.0625}]
RUN = ("tiny", "random", "sasrec", 16)


@pytest.fixture
def measured(project: Path, set_params: Callable[[dict[str, Any]], None]) -> Path:
    set_params({"dim": 16})
    return write_figures(load_params(), {"share": 0.2, "seed": 0}, FIGURES)


def test_what_was_written_is_read(measured: Path) -> None:
    rows, why = read_figures(load_params(), *RUN)
    assert rows is not None
    assert rows.to_dicts() == FIGURES
    assert not why


def test_there_may_be_none(project: Path) -> None:
    assert read_figures(load_params(), *RUN) == (None, "")


@pytest.mark.parametrize(
    "other",
    [
        {"train.temperature": 0.1},
        {"adapters.morec.id_std": 0.5},
        {"evaluate.similarity": "dot"},
        {"svd.rank_rtol": 0.2},
        {"encoders.random.pooling": "cls"},
    ],
)
def test_figures_of_other_settings_are_not_shown(
    measured: Path, set_params: Callable[[dict[str, Any]], None], other: dict[str, Any]
) -> None:
    set_params(other)
    rows, why = read_figures(load_params(), *RUN)
    assert rows is None
    assert "was measured with other settings" in why


def test_an_adapter_that_was_not_measured_changes_nothing(measured: Path, set_params: Callable[[dict[str, Any]], None]) -> None:
    set_params({"adapters.whitenrec.dropout": 0.5})
    assert not read_figures(load_params(), *RUN)[1]


def test_nor_those_of_another_dim_or_of_other_sequences(measured: Path) -> None:
    assert read_figures(load_params(), "tiny", "random", "sasrec", 8)[0] is None
    sidecar = Path("data/sequences/tiny/sidecar.json")
    write_signed(sidecar, {**read_signed(sidecar, "preprocess"), "source": "another"})
    assert "other sequences" in read_figures(load_params(), *RUN)[1]


def test_nor_those_of_other_code(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "COLD_CODE", ("pipeline/serving/cold.py",))
    assert "was measured with other code" in read_figures(load_params(), *RUN)[1]


def test_figures_are_those_of_every_machine(measured: Path) -> None:
    """The last digits of a spectrum depend on the processor, and so its checksum."""
    sidecar = Path("data/spectrum/tiny/random/sidecar.json")
    write_signed(sidecar, {**read_signed(sidecar, "svd"), "files": {}})
    assert not read_figures(load_params(), *RUN)[1]


def test_a_damaged_table_is_refused(measured: Path) -> None:
    measured.write_text(measured.read_text().replace("0.125", "0.925"))
    with pytest.raises(UserError, match=r"metrics/cold/tiny.*stages\.cold"):
        read_figures(load_params(), *RUN)
