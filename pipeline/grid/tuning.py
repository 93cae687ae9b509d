"""Tuning with the same budget for every method: trials that are full runs, judged on validation. The choice is a file in git.

Importing this module does not import torch.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from pipeline.artifacts import SIDECAR, atomic_file, fingerprint, read_json, scratch, verify, write_json
from pipeline.params import Params, read_yaml
from pipeline.runs import Run

SPACE = Path("grid/space.yaml")
TUNED = Path("grid/tuned")
MONITOR = "NDCG@20"
DRAWN = 8  # trials, the defaults among them, before the sampler looks at earlier ones
FINALISTS = 2  # the best settings beside the defaults; these are trained under the second seed
ATTEMPTS = 100  # suggestions that were tried before, until the next untried setting is taken instead

Setting = dict[str, Any]  # "section.option" -> value; sections as in Run.settings


@dataclass(frozen=True)
class Tuning:
    """The tuning of one adapter on one dataset and backbone under one loss, within the budget of `grid.tuning`.

    Each trial trains one setting under `grid.tuning.seed` as any run is trained: up to `train.epochs` epochs, stopped by
    `train.patience`. Nothing is given up earlier, for that would favour settings that learn fast. The first trial is the setting
    of params.yaml. This default and the best two others are the finalists: each is trained under a second seed too, and the best
    mean of the two validations is chosen.

    Example: trials validate at 0.070 (default), 0.074, 0.079, 0.077. Finalists are 0, 2 and 3. Under the second seed they reach
    0.071, 0.073 and 0.078; the means are 0.0705, 0.076 and 0.0775, so trial 3 is chosen, although trial 2 was the best at first.
    """

    params: Params
    dataset: str
    backbone: str
    adapter: str
    loss: str

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.backbone}-{self.adapter}-{self.loss}"

    @property
    def file(self) -> Path:
        """The file of the choice."""
        return TUNED / f"{self.name}.yaml"

    @property
    def command(self) -> str:
        return f"python -m stages.tune {self.dataset} {self.backbone} {self.adapter} {self.loss}"

    @property
    def seeds(self) -> tuple[int, int]:
        """Of the trials, and of the finalists' second run."""
        return self.params.grid.tuning.seed, self.params.grid.tuning.seed + 1

    def run(self, setting: Setting, seed: int | None = None) -> Run:
        """A run with this setting; under the trials' seed if none is given."""
        names = {"dataset": self.dataset, "backbone": self.backbone, "adapter": self.adapter, "dim": self.params.grid.dim}
        changes = _sections({"train.loss": self.loss} | setting)
        return Run.of(self.params, **names, seed=self.seeds[0] if seed is None else seed, changes=changes)

    @cached_property
    def space(self) -> dict[str, list[Any]]:
        """Option -> values to choose from; the first is that of params.yaml. Raises UserError for a space that is not usable."""
        listed = read_yaml(SPACE)
        defaults = self.run({}).settings
        found = {}
        for section, options in (
            ("train", listed.get("train")),
            ("backbone", (listed.get("backbones") or {}).get(self.backbone)),
            ("adapter", (listed.get("adapters") or {}).get(self.adapter)),
        ):
            for option, values in (options or {}).items():
                if option not in defaults[section]:
                    raise UserError(f"{SPACE}: {section} {option} is no option in params.yaml of {self.name}")
                if not isinstance(values, list):
                    raise UserError(f"{SPACE}: {section} {option} wants a list of values, found {values!r}")
                default = defaults[section][option]
                found[f"{section}.{option}"] = [default, *(value for value in values if value != default)]
        return found

    @property
    def n_trials(self) -> int:
        """As many as `grid.tuning` gives, or as there are settings."""
        return min(self.params.grid.tuning.trials, prod(map(len, self.space.values())))

    @property
    def conditions(self) -> dict[str, Any]:
        """What the choice was made for: it is used under the same conditions only.

        Code is not among them: a choice is kept, as a setting of params.yaml is, until what it was chosen for changes. UserError
        where the dataset's sequences are missing.
        """
        run = self.run({})
        return {
            "sequences": fingerprint(read_json(run.sequences / SIDECAR, "the preprocess stage")),
            "encoder": self.params.encoder,
            "dim": self.params.grid.dim,
            "trials": self.n_trials,
            "seeds": list(self.seeds),
            "space": self.space,
            "settings": run.settings,
        }

    @property
    def chosen(self) -> Setting:
        """What the tuning chose.

        Raises UserError where the choice is missing, was made under other conditions, or is not what its trials say.
        """
        if not self.file.is_file():
            raise UserError(f"{self.file} is missing; `{self.command}` makes it")
        found = read_yaml(self.file)
        made_under = found.get("conditions")
        for name, value in self.conditions.items():
            if not isinstance(made_under, dict) or made_under.get(name) != value:
                raise UserError(
                    f"{self.file} was made with another value of {name} than params.yaml, {SPACE} and the data give; "
                    f"`{self.command}` tunes again"
                )
        chosen = found.get("chosen")
        if not isinstance(chosen, dict) or set(chosen) != set(self.space):
            raise UserError(f"{self.file} does not choose a value for each option of {SPACE}; `{self.command}` writes it again")
        for name, value in chosen.items():
            if value not in self.space[name]:
                raise UserError(f"{self.file}: {name} {value!r} is not in {SPACE}; `{self.command}` writes it again")
        try:
            best = _best(found["finalists"])["setting"]
        except (KeyError, TypeError, ValueError):
            best = None
        if chosen != best:
            raise UserError(f"{self.file} does not choose its best finalist; `{self.command}` writes it again")
        return chosen

    @property
    def has_choice(self) -> bool:
        """Whether a choice is there that `chosen` accepts."""
        try:
            return isinstance(self.chosen, dict)
        except UserError:
            return False

    @property
    def scratch(self) -> Path:
        """A file per trial, and one per second run of a finalist. Another number of trials goes on with what is there."""
        return scratch() / "tuning" / fingerprint(self.run({}).fingerprint, self.space)

    def trials(self) -> list[dict[str, Any]]:
        """The trials that are over, in order."""
        found: list[dict[str, Any]] = []
        while len(found) < self.n_trials and (file := self.scratch / f"trial-{len(found)}.json").is_file():
            found.append(read_json(file, self.command))
        return found

    def second_run(self, number: int) -> Path:
        """The file with what a finalist, the trial of this number, reached under the second seed."""
        return self.scratch / f"second-run-{number}.json"

    @property
    def trials_done(self) -> bool:
        """Whether all trials and second runs are over: `write_choice` has what it reads."""
        trials = self.trials()
        return len(trials) == self.n_trials and all(self.second_run(number).is_file() for number in finalists(trials))


def finalists(trials: list[dict[str, Any]]) -> list[int]:
    """Numbers of the default's trial and of the best others, in order; without those that failed."""
    complete = [number for number, trial in enumerate(trials) if trial["state"] == "complete"]
    others = sorted(set(complete) - {0}, key=lambda number: (-trials[number]["validation"], number))
    return sorted({0} & set(complete) | set(others[:FINALISTS]))


def tune(tuning: Tuning) -> None:
    """Make the trials that are not there yet, one after another, for each suggestion follows from the trials before it.

    Then train the finalists under the second seed. What is over is in scratch and is not done again.
    """
    trials = tuning.trials()
    for number in range(len(trials), tuning.n_trials):
        choice = _suggestion(tuning, trials)
        setting = {name: tuning.space[name][position] for name, position in choice.items()}
        trials.append({"choice": choice, "setting": setting} | _validation(tuning.run(setting)))
        write_json(tuning.scratch / f"trial-{number}.json", trials[-1])
    for number in finalists(trials):
        if not tuning.second_run(number).is_file():
            write_json(tuning.second_run(number), _validation(tuning.run(trials[number]["setting"], tuning.seeds[1])))


def write_choice(tuning: Tuning) -> float:
    """Write the choice, the finalist with the best mean validation; return this mean. UserError where all failed."""
    trials = tuning.trials()
    compared: list[dict[str, Any]] = []
    for number in finalists(trials):
        runs = [trials[number], read_json(tuning.second_run(number), tuning.command)]
        values = [run["validation"] for run in runs]
        mean = None if None in values else sum(values) / len(values)
        by_seed = dict(zip(tuning.seeds, values, strict=True))
        compared.append({"trial": number, "mean": mean, "validation": by_seed, "setting": trials[number]["setting"]})
    try:
        best = _best(compared)
    except ValueError:
        raise UserError(f"all {len(trials)} trials of {tuning.name} failed, see {tuning.scratch}") from None
    content = {
        "chosen": best["setting"],
        "validation": best["mean"],
        "finalists": compared,
        "conditions": tuning.conditions,
        "trials": [{name: trial[name] for name in ("state", "epochs", "validation", "setting")} for trial in trials],
    }
    head = (
        f"# The best mean validation {MONITOR} over two seeds, of the defaults and the best others of {len(trials)} trials: "
        f"`{tuning.command}`.\n"
    )
    with atomic_file(tuning.file) as partial:
        partial.write_text(head + yaml.dump(content, Dumper=_Plain, sort_keys=False, width=130), encoding="utf-8")
    return float(best["mean"])


def _best(compared: list[dict[str, Any]]) -> dict[str, Any]:
    """The finalist with the best mean, the earlier of equal ones. ValueError where none was trained under both seeds."""
    return max((one for one in compared if one["mean"] is not None), key=lambda one: one["mean"])


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _sections(setting: Setting) -> dict[str, dict[str, Any]]:
    """{"train.loss": …} -> {"train": {"loss": …}}."""
    made: dict[str, dict[str, Any]] = {}
    for name, value in setting.items():
        section, _, option = name.partition(".")
        made.setdefault(section, {})[option] = value
    return made


def _validation(run: Run) -> dict[str, Any]:
    """Train a run that is not in scratch yet; return its state, epochs and best validation."""
    from pipeline.training.loop import DivergedError, train_run

    if not run.finished:
        try:
            train_run(run)
        except DivergedError as error:
            return {"state": "failed", "epochs": 0, "validation": None, "error": str(error)}
    run.remove_unfinished()
    verify(run.scratch, "the same command again", ["training.json"])
    summary = read_json(run.scratch / "training.json", "the train stage")
    return {"state": "complete", "epochs": summary["epochs"], "validation": summary["validation"][MONITOR]}


def _suggestion(tuning: Tuning, trials: list[dict[str, Any]]) -> dict[str, int]:
    """A setting that was not tried, as option -> position in the space; the defaults at first.

    It depends on the seed and the earlier trials alone: a tuning that was cut off goes on to the same choice.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not trials:
        return dict.fromkeys(tuning.space, 0)
    distributions: dict[str, Any] = {
        # By position: values of one option may be of different types, or null.
        name: optuna.distributions.CategoricalDistribution(range(len(values)))
        for name, values in tuning.space.items()
    }
    states = {"complete": optuna.trial.TrialState.COMPLETE, "failed": optuna.trial.TrialState.FAIL}
    tried = [trial["choice"] for trial in trials]
    for attempt in range(ATTEMPTS):
        seed = int(fingerprint(tuning.seeds[0], len(trials), attempt)[:8], 16)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=DRAWN))
        for trial in trials:
            study.add_trial(
                optuna.trial.create_trial(
                    state=states[trial["state"]],
                    params=trial["choice"],
                    distributions=distributions,
                    value=trial["validation"],
                )
            )
        suggested: dict[str, int] = study.ask(distributions).params
        if suggested not in tried:
            return suggested
    settings = (dict(zip(tuning.space, each, strict=True)) for each in product(*(range(len(v)) for v in tuning.space.values())))
    return next(setting for setting in settings if setting not in tried)


def listed_tunings(params: Params) -> list[Tuning]:
    """Every tuning that `grid.tuning` lists."""
    grid = params.grid
    return [
        Tuning(params, dataset, backbone, adapter, loss)
        for dataset in grid.tuning.datasets
        for backbone in grid.tuning.backbones
        for loss in grid.tuning.losses
        for adapter in grid.adapters
    ]
