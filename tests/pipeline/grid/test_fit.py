"""A grid whose adapters do not fit its dim is refused before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from pipeline.grid import complete, tasks
from pipeline.grid.cells import Cell
from pipeline.grid.execution import build_cell
from pipeline.grid.fit import rank, refuse_unfit
from pipeline.grid.local import Local
from pipeline.params import load_params
from pipeline.runs import Run

SetParams = Callable[[dict[str, Any]], None]


def test_the_rank_is_that_of_the_random_embeddings(selected: Callable[..., Run]) -> None:
    assert rank(selected()) == 24


def test_a_grid_with_more_dims_than_the_texts_have_directions_trains_nothing(
    set_params: SetParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the adapters, the option and a dim that fits all; 24 directions."""
    set_params({"grid.dim": 40, "grid.adapters": ["base", "alphafuse", "llm_esr", "spectran", "llminit"]})
    params = load_params()
    monkeypatch.setattr(complete, "assemble", lambda params, quiet=False: False)
    with pytest.raises(UserError) as refused:
        complete.complete(params, Local(1))
    assert str(refused.value) == (
        "nothing was trained: alphafuse, spectran, llminit on tiny cannot be built; adapter alphafuse: dim is 40, but the "
        "embeddings have rank 24; choose grid.dim <= 24, which fits all, or leave these adapters out"
    )
    assert not list(Path(".scratch").rglob("*.safetensors"))
    set_params({"grid.dim": 24})
    tasks.check_fit(load_params())


def test_a_list_of_dims_is_named_by_its_own_option(set_params: SetParams) -> None:
    lists = {"datasets": ["tiny"], "backbones": ["sasrec"], "adapters": ["spectran"], "dims": [8, 32]}
    set_params({"grid.dimensions": lists})
    with pytest.raises(UserError, match=r"dim is 32, .*; choose grid\.dimensions\.dims <= 24, which fits all"):
        tasks.check_fit(load_params())


def test_a_cell_that_dvc_builds_names_the_option_of_the_grid(set_params: SetParams) -> None:
    set_params({"grid.dim": 26})
    with pytest.raises(UserError, match=r"^nothing was trained: spectran on tiny cannot be built; .*choose grid\.dim <= 24"):
        build_cell(Cell("tiny", "sasrec", "spectran"), load_params())


def test_a_dim_below_the_rank_is_refused_where_an_adapter_cannot_have_it(set_params: SetParams) -> None:
    """The rank is 24; two heads of LLM-ESR's cross-attention need a multiple of 4."""
    set_params({"grid.dim": 10, "grid.adapters": ["base", "llm_esr"]})
    with pytest.raises(UserError, match=r"^nothing was trained: llm_esr on tiny cannot be built; .*need a multiple of 4"):
        tasks.check_fit(load_params())


def test_ids_alone_fit_any_dim(selected: Callable[..., Run]) -> None:
    refuse_unfit("grid.dim", [selected(adapter="base", dim=64)])


def test_no_dim_is_named_where_none_would_help(selected: Callable[..., Run], set_params: SetParams) -> None:
    set_params({"backbones.sasrec.heads": 65})
    run = selected(adapter="base", dim=64)
    with pytest.raises(UserError, match=r"heads is 65, which does not divide dim 64; choose heads that do, or another dim$"):
        refuse_unfit("grid.dim", [run])
