"""Tuning: only validation decides, every method has the same budget, and an interrupted tuning resumes to the same choice."""

import contextlib
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import UserError
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from pipeline.artifacts import SIDECAR
from pipeline.grid import sampler
from pipeline.grid import tuning as module
from pipeline.grid.cells import Cell
from pipeline.grid.tasks import unfinished_tasks
from pipeline.grid.tuning import SPACE, Tuning, finalists, listed_tunings, tune, write_choice
from pipeline.params import Params, load_params
from pipeline.runs import Run

ROOT = Path(__file__).parents[3]


@pytest.fixture
def params(project: Path, set_params: Callable[..., None]) -> Params:
    """Four trials; runs of three epochs."""
    SPACE.parent.mkdir(exist_ok=True)
    SPACE.write_text((ROOT / SPACE).read_text(encoding="utf-8"), encoding="utf-8")
    lists = {"datasets": ["tiny"], "losses": ["info_nce"], "trials": 4}
    set_params({"train.epochs": 3} | {f"grid.tuning.{name}": value for name, value in lists.items()})
    return load_params()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The list of runs to train; none is trained, and validation is computed from the settings."""
    runs: list[Run] = []

    def validation(run: Run) -> dict[str, Any]:
        runs.append(run)
        value = 0.1 + run.settings["backbone"]["dropout"] / 10 + 100 * run.settings["train"]["weight_decay"]
        return {"state": "complete", "epochs": 3, "validation": value}

    monkeypatch.setattr(module, "_validation", validation)
    return runs


def tuning(params: Params, adapter: str = "base", loss: str = "info_nce") -> Tuning:
    return Tuning(params, "tiny", "sasrec", adapter, loss)


def tuned(params: Params, **names: str) -> dict[str, Any]:
    """Tune and write the choice; return the content of its file."""
    subject = tuning(params, **names)
    tune(subject)
    write_choice(subject)
    assert "&id" not in subject.file.read_text(encoding="utf-8")
    return dict(yaml.safe_load(subject.file.read_text(encoding="utf-8")))


def test_the_first_trial_is_what_params_yaml_says_and_none_is_made_twice(params: Params) -> None:
    found = tuned(params)
    settings = [trial["setting"] for trial in found["trials"]]
    defaults = {"train.weight_decay": 0.0, "backbone.dropout": 0.2, "adapter.id_std": 0.02}
    assert settings[0] == defaults
    assert len(settings) == 4
    assert all(settings.count(one) == 1 for one in settings)


def test_a_trial_is_a_full_run_and_the_test_set_is_not_looked_at(params: Params) -> None:
    """A trial has the budget and the directory of an ordinary run, and records the validation of its best epoch."""
    subject = tuning(params)
    found = tuned(params)
    for trial in found["trials"]:
        run = subject.run(trial["setting"])
        assert run.settings["train"]["epochs"] == params.train.epochs
        assert run.settings["train"]["patience"] == params.train.patience
        history = (run.scratch / "history.csv").read_text().splitlines()
        column = history[0].split(",").index("NDCG@20")
        assert trial["validation"] == max(float(line.split(",")[column]) for line in history[1:])
        assert trial["epochs"] == len(history) - 1
    assert not list(Path(".scratch").rglob("ranks.parquet"))


@pytest.mark.parametrize(
    ("validations", "expected"),
    [
        ([0.5, 0.1, 0.3, 0.2], [0, 2, 3]),
        ([0.1, 0.5, 0.4, 0.3], [0, 1, 2]),
        ([0.1, 0.5, 0.5, 0.5], [0, 1, 2]),
        ([0.1, None, 0.2, 0.3], [0, 2, 3]),
        ([None, 0.1, 0.2, 0.3], [2, 3]),
        ([0.1], [0]),
        ([None], []),
    ],
)
def test_the_finalists_are_the_default_and_the_best_two_others(validations: list[float | None], expected: list[int]) -> None:
    trials = [{"state": "failed" if value is None else "complete", "validation": value} for value in validations]
    assert finalists(trials) == expected


def test_the_finalist_that_is_best_under_the_fresh_seed_is_chosen(
    params: Params, trained: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best two of three others are above the default under the seed that selected them; of their means, trial 2's is best."""
    at_first, again = [0.070, 0.074, 0.079, 0.077], {0: 0.071, 2: 0.073, 3: 0.074}
    settings: list[dict[str, Any]] = []

    def validation(run: Run) -> dict[str, Any]:
        if run.seed == 0:
            settings.append(run.settings)
            return {"state": "complete", "epochs": 3, "validation": at_first[len(settings) - 1]}
        return {"state": "complete", "epochs": 3, "validation": again[settings.index(run.settings)]}

    monkeypatch.setattr(module, "_validation", validation)
    found = tuned(params)
    assert [one["trial"] for one in found["finalists"]] == [0, 2, 3]
    assert [one["validation"] for one in found["finalists"]] == [{0: 0.070, 1: 0.071}, {0: 0.079, 1: 0.073}, {0: 0.077, 1: 0.074}]
    assert found["chosen"] == found["trials"][3]["setting"]
    assert found["validation"] == 0.074
    assert tuning(params).chosen == found["chosen"]


def test_a_finalist_that_diverges_under_the_second_seed_is_not_chosen(
    params: Params, trained: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = max(tuned(params)["finalists"], key=lambda one: one["validation"][0])
    subject = tuning(params)
    for number in range(4):
        subject.second_run(number).unlink(missing_ok=True)
    validation = module._validation

    def diverging(run: Run) -> dict[str, Any]:
        if run.settings == subject.run(best["setting"]).settings:
            return {"state": "failed", "epochs": 0, "validation": None, "error": "the loss is nan"}
        return validation(run)

    monkeypatch.setattr(module, "_validation", diverging)
    found = tuned(params)
    assert {one["trial"]: one["validation"][1] for one in found["finalists"]}[best["trial"]] is None
    assert found["chosen"] != best["setting"]
    assert tuning(params).chosen == found["chosen"]


def test_every_method_has_the_same_budget(params: Params, trained: list[Run]) -> None:
    for adapter in ("base", "spectran"):
        tuned(params, adapter=adapter)
        runs = [run for run in trained if run.adapter == adapter]
        assert [run.seed for run in runs] == [0] * 4 + [1] * 3
        assert len({run.settings["train"]["epochs"] for run in runs}) == 1


def test_an_interrupted_tuning_resumes_to_the_same_choice(
    params: Params, set_params: Callable[..., None], trained: list[Run]
) -> None:
    """After any number of trials: finished ones are not repeated, and the others are the same as without the interruption."""
    set_params({"grid.tuning.trials": 12})
    params = load_params()
    subject = tuning(params)
    complete = tuned(params)
    texts = {file.name: file.read_text() for file in subject.scratch.iterdir()}
    order = [f"trial-{number}.json" for number in range(12)]
    order += [subject.second_run(one["trial"]).name for one in complete["finalists"]]
    assert set(order) == set(texts)
    for cut in (0, 1, 5, 10, 12, 13, 15):
        for file in subject.scratch.iterdir():
            file.unlink()
        for name in order[:cut]:
            (subject.scratch / name).write_text(texts[name])
        subject.file.unlink()
        assert subject.trials_done == (cut == 15)
        trained.clear()
        assert tuned(params) == complete
        assert len(trained) == 15 - cut


def test_a_run_that_is_in_scratch_is_not_trained_again(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = tuned(params)
    subject = tuning(params)
    for file in subject.scratch.iterdir():
        file.unlink()
    monkeypatch.setattr("pipeline.training.loop.train_run", lambda run: pytest.fail("trained again"))
    assert tuned(params) == complete


def test_more_trials_reuse_the_finished_ones(params: Params, set_params: Callable[..., None], trained: list[Run]) -> None:
    before = tuned(params)["trials"]
    set_params({"grid.tuning.trials": 6})
    assert tuned(load_params())["trials"][:4] == before


def test_the_sampler_learns_from_the_validations(params: Params, set_params: Callable[..., None], trained: list[Run]) -> None:
    """Validation here grows with weight decay and dropout, so the last trials are better than the first."""
    set_params({"grid.tuning.trials": 24})
    values = [trial["validation"] for trial in tuned(load_params())["trials"]]
    assert sum(values[16:]) / 8 > sum(values[:8]) / 8


def test_a_trial_that_diverges_is_a_failed_one(params: Params, set_params: Callable[..., None]) -> None:
    SPACE.write_text("train:\n  learning_rate: [1.0e+30]\n")
    found = tuned(params)
    assert [trial["state"] for trial in found["trials"]] == ["complete", "failed"]
    assert found["chosen"] == {"train.learning_rate": 0.001}


def test_a_trial_that_cannot_be_built_is_a_failed_one(params: Params) -> None:
    """Options may fit one by one and not together, or not the dim: three heads do not divide it."""
    SPACE.write_text("backbones:\n  sasrec:\n    heads: [3]\n")
    found = tuned(params)
    assert [trial["state"] for trial in found["trials"]] == ["complete", "failed"]
    assert "heads" in module._validation(tuning(params).run({"backbone.heads": 3}))["error"]
    assert found["chosen"] == {"backbone.heads": 1}


def test_if_all_diverge_nothing_is_chosen(params: Params, set_params: Callable[..., None]) -> None:
    SPACE.write_text("train: {}\n")
    set_params({"train.learning_rate": 1e30})
    with pytest.raises(UserError, match=r"^all 1 trials of tiny-sasrec-base-info_nce failed"):
        tuned(load_params())
    assert not tuning(load_params()).file.exists()


@pytest.mark.parametrize("attempts", [0, 1, 100])
def test_a_small_space_is_tried_once(params: Params, trained: list[Run], monkeypatch: pytest.MonkeyPatch, attempts: int) -> None:
    monkeypatch.setattr(sampler, "ATTEMPTS", attempts)
    SPACE.write_text("adapters:\n  base:\n    id_std: [0.1]\n")
    assert [trial["setting"] for trial in tuned(params)["trials"]] == [{"adapter.id_std": 0.02}, {"adapter.id_std": 0.1}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  weigth_decay: [0.1]\n", "train weigth_decay is not an option"),
        ("adapters:\n  base:\n    id_std: 0.1\n", "adapter id_std must be a list of values, found 0.1"),
        (
            "train:\n  learning_rate: [fast]\n",
            r"^grid/space\.yaml: train: learning_rate: .* valid number.*, found 'fast'$",
        ),
        ("train:\n  learning_rate: [1e-4, -1.0]\n", r"^grid/space\.yaml: train: learning_rate: .* greater than 0, found -1\.0$"),
        ("adapters: [base]\n", r"^grid/space\.yaml: adapters must list adapters with their options, found \['base'\]$"),
        ("train: [0.1]\n", r"^grid/space\.yaml: train must list options with their values, found \[0\.1\]$"),
        ("backbones:\n  sasrec:\n    dropout: [2]\n", r"^grid/space\.yaml: backbones\.sasrec: dropout: .*, found 2$"),
        (
            "adapters:\n  base:\n    id_std: [true]\n",
            r"^grid/space\.yaml: adapters\.base: id_std: .* number, found true$",
        ),
    ],
)
def test_a_space_that_cannot_be_used_is_one_line(params: Params, text: str, message: str) -> None:
    SPACE.write_text(text)
    with pytest.raises(UserError, match=message):
        tune(tuning(params))


def test_a_number_that_yaml_takes_for_text_is_a_number(params: Params, set_params: Callable[..., None]) -> None:
    """In YAML 1.1 a number with an exponent has a point and a sign; params.yaml may have such a text as well."""
    SPACE.write_text("train:\n  learning_rate: [1e-3, 1e-4]\nadapters:\n  base:\n    id_std: ['0.02', 5e-1]\n")
    assert tuning(params).space == {"train.learning_rate": [0.001, 0.0001], "adapter.id_std": [0.02, 0.5]}
    set_params({"adapters.base.id_std": "5e-1"})
    assert tuning(load_params()).space["adapter.id_std"] == ["5e-1", 0.02]
    found = tuned(load_params())
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 4
    assert tuning(load_params()).has_choice


def test_the_values_of_the_space_in_git_are_those_of_its_yaml() -> None:
    """Choices and trials from before values were parsed stay valid, so no number may become another one, nor 1 become 1.0."""
    listed = yaml.safe_load((ROOT / SPACE).read_text(encoding="utf-8"))
    params = load_params(ROOT / "params.yaml")
    with contextlib.chdir(ROOT):
        for backbone, adapter in product(BACKBONES, ADAPTERS):
            subject = Tuning(params, "tiny", backbone, adapter, "info_nce")
            defaults = subject.run({}).settings
            sections = {
                "train": listed["train"],
                "backbone": listed["backbones"][backbone],
                "adapter": listed["adapters"][adapter],
            }
            before = {
                f"{section}.{option}": [default, *(value for value in values if value != default)]
                for section, options in sections.items()
                for option, values in options.items()
                for default in [defaults[section][option]]
            }
            assert json.dumps(subject.space) == json.dumps(before)


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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("grid.dim", 8, "dim"),
        ("grid.tuning.trials", 2, "trials"),
        ("grid.tuning.seed", 2, "seeds"),
        ("train.epochs", 2, "settings"),
        ("backbones.sasrec.blocks", 1, "settings"),
        ("encoder", "minilm", "encoder"),
        ("encoders.random.pooling", "cls", "encoder_options"),
        ("svd.rank_rtol", 0.2, "svd"),
    ],
)
def test_a_choice_made_under_other_conditions_is_refused(
    params: Params, set_params: Callable[..., None], trained: list[Run], name: str, value: Any, message: str
) -> None:
    tuned(params)
    assert tuning(params).has_choice
    set_params({name: value})
    changed = tuning(load_params())
    assert not changed.has_choice
    with pytest.raises(UserError, match=rf"another value of {message} than that of params.yaml.* `python -m stages.tune tiny"):
        _ = changed.chosen


def test_a_choice_from_before_a_condition_was_recorded_counts(params: Params, trained: list[Run]) -> None:
    found = tuned(params)
    conditions = {name: value for name, value in found["conditions"].items() if name not in ("encoder_options", "svd")}
    tuning(params).file.write_text(yaml.safe_dump(found | {"conditions": conditions}))
    assert tuning(load_params()).has_choice


def test_a_choice_from_another_space_is_refused(params: Params, trained: list[Run]) -> None:
    tuned(params)
    SPACE.write_text(SPACE.read_text().replace("weight_decay: [0.0, ", "weight_decay: [0.0, 0.5, "))
    assert not tuning(params).has_choice
    with pytest.raises(UserError, match="another value of space"):
        _ = tuning(params).chosen


def test_a_choice_made_on_other_data_is_refused(params: Params, trained: list[Run]) -> None:
    tuned(params)
    sidecar = Path("data/sequences/tiny") / SIDECAR
    sidecar.chmod(0o644)
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"cap": 7}))
    with pytest.raises(UserError, match="another value of sequences"):
        _ = tuning(params).chosen


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train.weight_decay": 99.0}, r"train\.weight_decay 99\.0 is not in grid/space\.yaml"),
        ({"train.learning_rate": 99.0}, r"does not have a value for each option of grid/space\.yaml"),
        ({"backbone.dropout": 0.0}, "does not choose its best finalist"),
    ],
)
def test_a_choice_edited_by_hand_is_refused(params: Params, trained: list[Run], changed: dict[str, float], message: str) -> None:
    found = tuned(params)
    subject = tuning(params)
    assert found["chosen"]["backbone.dropout"] != 0.0
    subject.file.write_text(yaml.safe_dump(found | {"chosen": found["chosen"] | changed}))
    assert not subject.has_choice
    with pytest.raises(
        UserError, match=rf"^grid/tuned/tiny-sasrec-base-info_nce\.yaml:? ?{message}; `python -m stages\.tune tiny"
    ):
        _ = subject.chosen
    write_choice(subject)
    assert subject.chosen == found["chosen"]


@pytest.mark.parametrize("content", ["chosen: [1]\n", "chosen: {}\nconditions: 3\n", "[1, 2]\n", "a: b: c\n"])
def test_a_broken_choice_is_one_line(params: Params, content: str) -> None:
    subject = tuning(params)
    subject.file.parent.mkdir(parents=True)
    subject.file.write_text(content)
    with pytest.raises(UserError) as refused:
        _ = subject.chosen
    assert "\n" not in str(refused.value)


def test_finalists_that_are_missing_or_broken_are_one_line(params: Params, trained: list[Run]) -> None:
    subject = tuning(params)
    found = tuned(params)
    for broken in (None, [], [{}], "all", [{"validation": {0: "high"}}]):
        subject.file.write_text(yaml.safe_dump(found | {"finalists": broken}))
        with pytest.raises(UserError, match="does not choose its best finalist"):
            _ = subject.chosen


def test_a_missing_choice_is_one_line(params: Params) -> None:
    with pytest.raises(UserError, match=r"^grid/tuned/tiny-sasrec-base-info_nce.yaml is missing; `python -m stages.tune tiny"):
        _ = tuning(params).chosen


def test_another_budget_is_tuned_again(params: Params, set_params: Callable[..., None], trained: list[Run]) -> None:
    """With a stale choice in grid/tuned, the tuning is a task of the grid again."""
    tuned(params)
    assert "tiny-sasrec-base-info_nce tuning" not in [task.name for task in unfinished_tasks(params)]
    set_params({"grid.tuning.trials": 5})
    assert "tiny-sasrec-base-info_nce tuning" in [task.name for task in unfinished_tasks(load_params())]


def test_every_adapter_and_backbone_has_a_space_and_every_value_of_it_is_valid() -> None:
    """A method without a space would silently be tuned less than the others."""
    space = yaml.safe_load((ROOT / SPACE).read_text(encoding="utf-8"))
    params = load_params(ROOT / "params.yaml")
    for section, registry, defaults in (
        ("adapters", ADAPTERS, params.adapters),
        ("backbones", BACKBONES, params.backbones),
    ):
        missing = set(registry) - set(space[section])
        assert not missing, f"say in {SPACE} what tuning may choose of {section} {sorted(missing)}; {{}} for nothing"
        assert not set(space[section]) - set(registry)
        for name, options in space[section].items():
            for option, values in options.items():
                for value in values:
                    registry.load(name).Config.parse(defaults[name] | {option: value}, name)
    for option, values in space["train"].items():
        for value in values:
            type(params.train).parse(params.train.model_dump() | {option: value}, "train")


def test_tunings_are_those_that_the_lists_name(params: Params, set_params: Callable[..., None]) -> None:
    set_params({"grid.tuning.losses": ["cross_entropy", "info_nce"]})
    assert [each.name for each in listed_tunings(load_params())] == [
        f"tiny-sasrec-{adapter}-{loss}" for loss in ("cross_entropy", "info_nce") for adapter in ("base", "spectran")
    ]
