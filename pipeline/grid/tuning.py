"""Tuning with the same budget for every method. Trials are full runs, compared on validation; the choice is a file in git.

Importing this module does not import torch.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from pipeline.artifacts import SIDECAR, atomic_file, fingerprint, read_json, scratch, verify, write_json
from pipeline.grid.fit import misfit
from pipeline.grid.sampler import models, next_choice, values_of
from pipeline.params import Params, read_yaml
from pipeline.runs import Run

SPACE = Path("grid/space.yaml")
TUNED = Path("grid/tuned")
MONITOR = "NDCG@20"
ADDED = {"encoder_options", "svd"}  # conditions that older choices do not record
FINALISTS = 2  # the number of finalists in addition to the default setting

Setting = dict[str, Any]  # "section.option" -> value; sections as in Run.settings


@dataclass(frozen=True)
class Tuning:
    """The tuning of one adapter on one dataset and backbone under one loss, within the budget of `grid.tuning`.

    A trial trains one setting with seed `grid.tuning.seed`, like any other run: up to `train.epochs` epochs, stopped by
    `train.patience`. No trial is pruned, because pruning would favour settings that learn fast. The first trial uses the setting
    of params.yaml. This default setting and the best two others are the finalists. They are also trained with a second seed, and
    the finalist with the best validation under that seed is chosen. The first seed selected the other finalists, so their
    validations under it are too high in the mean, and that of the default is not; a mean of both seeds would favour the others.

    Example: the validations of four trials are 0.070 (default), 0.074, 0.079 and 0.077. The finalists are trials 0, 2 and 3. With
    the second seed they reach 0.071, 0.073 and 0.078, so trial 3 is chosen, although trial 2 had the best validation with the
    first seed.
    """

    params: Params
    dataset: str
    backbone: str
    adapter: str
    loss: str

    @property
    def name(self) -> str:
        """The name of the tuning, as in messages and file names."""
        return f"{self.dataset}-{self.backbone}-{self.adapter}-{self.loss}"

    @property
    def file(self) -> Path:
        """The file with the choice."""
        return TUNED / f"{self.name}.yaml"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What runs this tuning after `python -m`."""
        return ("stages.tune", self.dataset, self.backbone, self.adapter, self.loss)

    @property
    def command(self) -> str:
        """The command that runs this tuning, for messages."""
        return f"python -m {' '.join(self.arguments)}"

    @property
    def seeds(self) -> tuple[int, int]:
        """The seed of the trials, and the seed of the finalists' second runs."""
        return self.params.grid.tuning.seed, self.params.grid.tuning.seed + 1

    def run(self, setting: Setting, seed: int | None = None) -> Run:
        """Return the run with this setting. seed: by default, that of the trials."""
        names = {"dataset": self.dataset, "backbone": self.backbone, "adapter": self.adapter, "dim": self.params.grid.dim}
        changes = _sections({"train.loss": self.loss} | setting)
        return Run.of(self.params, **names, seed=self.seeds[0] if seed is None else seed, changes=changes)

    @cached_property
    def space(self) -> dict[str, list[Any]]:
        """Option -> values to choose from, the value of params.yaml first. Raises UserError if grid/space.yaml is invalid.

        The values are parsed as those of params.yaml are, so that `1e-3`, a text in YAML, is a number. This imports torch if
        there are values for the backbone or the adapter, whose classes parse them.
        """
        listed = read_yaml(SPACE)
        for name in ("backbones", "adapters"):
            if not isinstance(listed.get(name) or {}, dict):
                raise UserError(f"{SPACE}: {name} must list {name} with their options, found {listed[name]!r}")
        run = self.run({})
        defaults = run.settings
        space = {}
        for section, options, within in (
            ("train", listed.get("train"), "train"),
            ("backbone", (listed.get("backbones") or {}).get(self.backbone), f"backbones.{self.backbone}"),
            ("adapter", (listed.get("adapters") or {}).get(self.adapter), f"adapters.{self.adapter}"),
        ):
            if options is not None and not isinstance(options, dict):
                raise UserError(f"{SPACE}: {within} must list options with their values, found {options!r}")
            for option, values in (options or {}).items():
                if option not in defaults[section]:
                    raise UserError(f"{SPACE}: {section} {option} is not an option of {self.name} in params.yaml")
                if not isinstance(values, list):
                    raise UserError(f"{SPACE}: {section} {option} must be a list of values, found {values!r}")
                config = run.section_class(section)
                default = getattr(config.parse(defaults[section], f"params.yaml: {within}"), option)
                parsed = [
                    getattr(config.parse(defaults[section] | {option: value}, f"{SPACE}: {within}"), option) for value in values
                ]
                # The default as it is in params.yaml, so that its trial is the run that is trained without tuning.
                others = [value for i, value in enumerate(parsed) if value not in [default, *parsed[:i]]]
                space[f"{section}.{option}"] = [defaults[section][option], *others]
        return space

    @property
    def n_trials(self) -> int:
        """The number of trials: `grid.tuning.trials`, or the number of models in the space if that is smaller."""
        return sum(1 for _ in islice(models(self.space), self.params.grid.tuning.trials))

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions of the tuning. A choice is valid only under the conditions that are recorded with it.

        Code is not one of them: like a setting of params.yaml, a choice stays valid when code changes. Raises UserError if the
        dataset's sequences are missing.
        """
        run = self.run({})
        return {
            "sequences": fingerprint(read_json(run.sequences / SIDECAR, "the preprocess stage")),
            "encoder": self.params.encoder,
            "encoder_options": self.params.encoders[self.params.encoder].model_dump(),
            "svd": self.params.svd.model_dump(),
            "dim": self.params.grid.dim,
            "trials": self.n_trials,
            "seeds": list(self.seeds),
            "space": self.space,
            "settings": run.settings,
        }

    @property
    def chosen(self) -> Setting:
        """The setting that the tuning chose.

        Raises UserError if the choice is missing, was made under other conditions, or is not its best finalist.
        """
        if not self.file.is_file():
            raise UserError(f"{self.file} is missing; `{self.command}` writes it")
        content = read_yaml(self.file)
        recorded = content.get("conditions")
        for name, value in self.conditions.items():
            if not isinstance(recorded, dict) or recorded.get(name, value if name in ADDED else None) != value:
                raise UserError(
                    f"{self.file} was tuned with another value of {name} than that of params.yaml, {SPACE} and the data; "
                    f"`{self.command}` tunes again"
                )
        chosen = content.get("chosen")
        if not isinstance(chosen, dict) or set(chosen) != set(self.space):
            raise UserError(f"{self.file} does not have a value for each option of {SPACE}; `{self.command}` writes it again")
        for name, value in chosen.items():
            if value not in self.space[name]:
                raise UserError(f"{self.file}: {name} {value!r} is not in {SPACE}; `{self.command}` writes it again")
        try:
            best = _best(content["finalists"])["setting"]
        except (KeyError, TypeError, ValueError):
            best = None
        if chosen != best:
            raise UserError(f"{self.file} does not choose its best finalist; `{self.command}` writes it again")
        return chosen

    @property
    def has_choice(self) -> bool:
        """Whether there is a valid choice."""
        try:
            return isinstance(self.chosen, dict)
        except UserError:
            return False

    @property
    def scratch(self) -> Path:
        """The directory with a file per trial and per second run. Its trials are reused if the number of trials changes."""
        return scratch() / "tuning" / fingerprint(self.run({}).fingerprint, self.space)

    def trials(self) -> list[dict[str, Any]]:
        """Return the finished trials, in order."""
        trials: list[dict[str, Any]] = []
        while len(trials) < self.n_trials and (file := self.scratch / f"trial-{len(trials)}.json").is_file():
            trials.append(read_json(file, self.command))
        return trials

    def second_run(self, number: int) -> Path:
        """Return the file with the result of a finalist with the second seed. number: of its trial."""
        return self.scratch / f"second-run-{number}.json"

    @property
    def trials_done(self) -> bool:
        """Whether all trials and second runs are finished, so that `write_choice` can be called."""
        trials = self.trials()
        return len(trials) == self.n_trials and all(self.second_run(number).is_file() for number in finalists(trials))


def finalists(trials: list[dict[str, Any]]) -> list[int]:
    """Return the numbers of the finalists in order: the default trial and the best FINALISTS others, without failed trials."""
    complete = [number for number, trial in enumerate(trials) if trial["state"] == "complete"]
    others = sorted(set(complete) - {0}, key=lambda number: (-trials[number]["validation"], number))
    return sorted({0} & set(complete) | set(others[:FINALISTS]))


def tune(tuning: Tuning) -> None:
    """Run the missing trials one after another, then the missing second runs of the finalists.

    Each trial depends on the results of the earlier ones. Finished trials are in scratch and are not repeated.
    """
    trials = tuning.trials()
    for number in range(len(trials), tuning.n_trials):
        choice = next_choice(tuning.space, trials, tuning.seeds[0])
        setting = values_of(tuning.space, choice)
        trials.append({"choice": choice, "setting": setting} | _validation(tuning.run(setting)))
        write_json(tuning.scratch / f"trial-{number}.json", trials[-1])
    for number in finalists(trials):
        if not tuning.second_run(number).is_file():
            write_json(tuning.second_run(number), _validation(tuning.run(trials[number]["setting"], tuning.seeds[1])))


class AllFailedError(UserError):
    """All trials of a tuning failed, so it has no choice."""


def write_choice(tuning: Tuning) -> float:
    """Write the choice; return its validation under the second seed. Raises AllFailedError if all failed."""
    trials = tuning.trials()
    compared: list[dict[str, Any]] = []  # the finalists with their results
    for number in finalists(trials):
        runs = [trials[number], read_json(tuning.second_run(number), tuning.command)]
        by_seed = {seed: run["validation"] for seed, run in zip(tuning.seeds, runs, strict=True)}
        compared.append({"trial": number, "validation": by_seed, "setting": trials[number]["setting"]})
    try:
        best = _best(compared)
    except ValueError:
        raise AllFailedError(f"all {len(trials)} trials of {tuning.name} failed; {tuning.scratch} has their errors") from None
    content = {
        "chosen": best["setting"],
        "validation": _second(best),
        "finalists": compared,
        "conditions": tuning.conditions,
        "trials": [{name: trial[name] for name in ("state", "epochs", "validation", "setting")} for trial in trials],
    }
    head = (
        f"# Written by `{tuning.command}`: the setting with the best validation {MONITOR} under seed {tuning.seeds[1]}, among "
        f"the default and the best other settings of {len(trials)} trials with seed {tuning.seeds[0]}.\n"
    )
    with atomic_file(tuning.file) as partial:
        partial.write_text(head + yaml.dump(content, Dumper=_Plain, sort_keys=False, width=130), encoding="utf-8")
    return float(_second(best))


def _best(compared: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the finalist that is best under the second seed, the earlier one of a tie. Raises ValueError if all failed."""
    return max((one for one in compared if _second(one) is not None), key=_second)


def _second(finalist: dict[str, Any]) -> Any:
    """The validation under the second seed, which is the larger one; None if that run failed."""
    by_seed = finalist["validation"]
    return by_seed[max(by_seed)]


class _Plain(yaml.SafeDumper):
    """Writes YAML without anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _sections(setting: Setting) -> dict[str, dict[str, Any]]:
    """Return {"train": {"loss": …}} for {"train.loss": …}."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in setting.items():
        section, _, option = name.partition(".")
        sections.setdefault(section, {})[option] = value
    return sections


def _validation(run: Run) -> dict[str, Any]:
    """Train a run unless scratch has it; return its state ("complete" or "failed"), epochs and best validation."""
    from pipeline.training.loop import DivergedError, train_run

    with run.lock():
        if not run.finished:
            run.verify_inputs()
            if why := misfit(run):
                return {"state": "failed", "epochs": 0, "validation": None, "error": why}
            try:
                train_run(run)
            except DivergedError as error:
                return {"state": "failed", "epochs": 0, "validation": None, "error": str(error)}
    verify(run.scratch, "the same command again", ["training.json"])
    summary = read_json(run.scratch / "training.json", "the train stage")
    return {"state": "complete", "epochs": summary["epochs"], "validation": summary["validation"][MONITOR]}


def listed_tunings(params: Params) -> list[Tuning]:
    """Return every tuning that `grid.tuning` lists."""
    grid = params.grid
    return [
        Tuning(params, dataset, backbone, adapter, loss)
        for dataset in grid.tuning.datasets
        for backbone in grid.tuning.backbones
        for loss in grid.tuning.losses
        for adapter in grid.adapters
    ]
