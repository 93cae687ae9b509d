"""Tuning: validation alone decides, every method has the same budget, and what was cut off goes on to the same choice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import UserError
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from pipeline.grid.cells import Cell
from pipeline.grid.tasks import tuning as module
from pipeline.grid.tasks import unfinished
from pipeline.grid.tuning import SPACE, Tuning, listed_tunings, search, write_choice
from pipeline.params import Params, load_params

ROOT = Path(__file__).parents[3]


@pytest.fixture
def params(project: Path, set_params: Callable[..., None]) -> Params:
    """Three trials of three epochs."""
    SPACE.parent.mkdir(exist_ok=True)
    SPACE.write_text((ROOT / SPACE).read_text(encoding="utf-8"), encoding="utf-8")
    lists = {"datasets": ["tiny"], "losses": ["info_nce"], "trials": 3, "epochs": 3}
    set_params({f"grid.search.{name}": value for name, value in lists.items()})
    return load_params()


def study(params: Params, adapter: str = "base", loss: str = "info_nce") -> Tuning:
    return Tuning(params, "tiny", "sasrec", adapter, loss)


def tuned(params: Params, **names: str) -> dict[str, Any]:
    """Search and write_choice; the file."""
    made = study(params, **names)
    search(made)
    write_choice(made)
    assert "&id" not in made.file.read_text(encoding="utf-8")
    return dict(yaml.safe_load(made.file.read_text(encoding="utf-8")))


def test_the_first_trial_is_what_params_yaml_says_and_none_is_made_twice(params: Params) -> None:
    found = tuned(params)
    settings = [trial["setting"] for trial in found["trials"]]
    defaults = {"train.weight_decay": 0.0, "backbone.dropout": 0.2, "adapter.id_std": 0.02}
    assert settings[0] == defaults
    assert len(settings) == 3
    assert all(settings.count(one) == 1 for one in settings)


def test_the_best_validation_is_chosen_and_the_test_set_is_not_looked_at(params: Params) -> None:
    found = tuned(params)
    complete = [trial for trial in found["trials"] if trial["state"] == "complete"]
    best = max(complete, key=lambda trial: trial["validation"])
    assert (found["chosen"], found["validation"]) == (best["setting"], best["validation"])
    assert len({trial["validation"] for trial in complete}) > 1
    assert not list(Path(".scratch").rglob("ranks.parquet"))


def test_a_search_that_was_cut_off_goes_on_to_the_same_choice(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuned(params)
    made = study(params)
    (made.scratch / "trial-2.json").unlink()
    (made.scratch / "trial-1.json").unlink()
    made.file.unlink()
    count = []
    suggest = module._trial
    monkeypatch.setattr(module, "_trial", lambda *given: count.append(1) or suggest(*given))
    assert tuned(params) == whole
    assert len(count) == 2


def test_more_trials_go_on_with_those_there_are(params: Params, set_params: Callable[..., None]) -> None:
    before = tuned(params)["trials"]
    set_params({"grid.search.trials": 4})
    assert tuned(load_params())["trials"][:3] == before


def test_a_trial_far_behind_is_given_up(params: Params, set_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the epoch after the warm-up, where it is below the median of the earlier ones; it is never chosen."""
    monkeypatch.setattr(module, "WARM_UP", 1)
    monkeypatch.setattr(module, "DRAWN", 2)
    made = study(params)
    for number, value in enumerate([0.9, 0.8]):
        choice = dict.fromkeys(made.space, 0) | {"train.weight_decay": number}
        setting = {name: made.space[name][position] for name, position in choice.items()}
        figures = {"history": [value] * 3, "epochs": 3, "validation": value, "state": "complete"}
        made.scratch.mkdir(parents=True, exist_ok=True)
        (made.scratch / f"trial-{number}.json").write_text(json.dumps({"choice": choice, "setting": setting} | figures))
    found = tuned(params)
    assert [trial["state"] for trial in found["trials"]] == ["complete", "complete", "pruned"]
    assert found["trials"][2]["epochs"] < 3
    assert found["validation"] == 0.9
    assert not list(Path(".scratch/unfinished").glob("*"))


def test_a_trial_that_diverges_is_a_failed_one(params: Params, set_params: Callable[..., None]) -> None:
    SPACE.write_text("train:\n  learning_rate: [1.0e+30]\n")
    found = tuned(params)
    assert [trial["state"] for trial in found["trials"]] == ["complete", "failed"]
    assert found["chosen"] == {"train.learning_rate": 0.001}


def test_if_all_diverge_nothing_is_chosen(params: Params, set_params: Callable[..., None]) -> None:
    SPACE.write_text("train: {}\n")
    set_params({"train.learning_rate": 1e30})
    with pytest.raises(UserError, match=r"^all 1 trials of tiny-sasrec-base-info_nce failed"):
        tuned(load_params())
    assert not study(load_params()).file.exists()


def test_a_small_space_is_tried_once(params: Params) -> None:
    SPACE.write_text("adapters:\n  base:\n    id_std: [0.1]\n")
    assert [trial["setting"] for trial in tuned(params)["trials"]] == [{"adapter.id_std": 0.02}, {"adapter.id_std": 0.1}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train:\n  weigth_decay: [0.1]\n", "train weigth_decay is no option"),
        ("adapters:\n  base:\n    id_std: 0.1\n", "adapter id_std wants a list of values, found 0.1"),
    ],
)
def test_a_space_that_cannot_be_used_is_one_line(params: Params, text: str, says: str) -> None:
    SPACE.write_text(text)
    with pytest.raises(UserError, match=says):
        search(study(params))


def test_a_cell_is_trained_with_the_choice_and_its_loss(params: Params) -> None:
    found = tuned(params, loss="cross_entropy")
    runs = Cell("tiny", "sasrec", "base", "tuned", "cross_entropy").runs(params)
    assert [run.seed for run in runs] == [0, 1]
    for run in runs:
        assert run.settings["train"]["loss"] == "cross_entropy"
        assert run.settings["train"]["epochs"] == params.train.epochs
        for name, value in found["chosen"].items():
            section, _, option = name.partition(".")
            assert run.settings[section][option] == value


@pytest.mark.parametrize(("name", "value"), [("dim", 8), ("search.trials", 2), ("search.epochs", 2)])
def test_a_choice_for_something_else_is_refused(params: Params, set_params: Callable[..., None], name: str, value: int) -> None:
    tuned(params)
    set_params({f"grid.{name}": value})
    changed = study(load_params())
    assert not changed.settled
    with pytest.raises(UserError, match=f"another {name.rpartition('.')[2]} than params.yaml .* `python -m stages.tune tiny"):
        _ = changed.chosen


def test_a_missing_choice_is_one_line(params: Params) -> None:
    with pytest.raises(UserError, match=r"^grid/tuned/tiny-sasrec-base-info_nce.yaml is missing; `python -m stages.tune tiny"):
        _ = study(params).chosen


def test_studies_come_first_then_the_runs_that_they_decide(params: Params) -> None:
    """What no study decides is not kept waiting."""
    searching = [f"tiny-sasrec-{adapter}-info_nce search" for adapter in ("base", "spectran")]
    plain = [f"tiny-sasrec-{adapter} dim 16 seed {seed}" for adapter in ("base", "spectran") for seed in (0, 1)]
    assert [task.name for task in unfinished(params)] == searching + plain
    search(study(params))
    after = [task.name for task in unfinished(params)]
    assert searching[0] not in after
    assert searching[1] in after
    assert study(params).settled
    chosen = tuned(params)["chosen"]
    default = all(values[0] == chosen[name] for name, values in study(params).space.items())
    tuned_runs = [f"tiny-sasrec-base dim 16 seed {seed} tuned info_nce" for seed in (0, 1)]
    assert [name for name in after if "tuned" in name] == ([] if default else tuned_runs)


def test_every_adapter_and_backbone_has_a_space_and_every_value_of_it_is_valid() -> None:

    space = yaml.safe_load((ROOT / SPACE).read_text(encoding="utf-8"))
    params = load_params(ROOT / "params.yaml")
    for section, registry, defaults in (
        ("adapters", ADAPTERS, params.adapters),
        ("backbones", BACKBONES, params.backbones),
    ):
        assert set(space[section]) == set(registry)
        for name, options in space[section].items():
            for option, values in options.items():
                for value in values:
                    registry.load(name).Config.parse(defaults[name] | {option: value}, name)
    for option, values in space["train"].items():
        for value in values:
            type(params.train).parse(params.train.model_dump() | {option: value}, "train")


def test_studies_are_those_that_the_lists_name(params: Params, set_params: Callable[..., None]) -> None:
    set_params({"grid.search.losses": ["cross_entropy", "info_nce"]})
    assert [study.name for study in listed_tunings(load_params())] == [
        f"tiny-sasrec-{adapter}-{loss}" for loss in ("cross_entropy", "info_nce") for adapter in ("base", "spectran")
    ]
