"""Runs: what is trained, with which settings, from which inputs. A run has one fingerprint and one directory in scratch.

Importing this module does not import torch, so that finding a finished run is fast.
"""

import fcntl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.code import code_fingerprint, forget, with_siblings
from common.errors import UserError
from common.section import Section
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.losses import LOSSES
from pipeline.artifacts import RUNS, SIDECAR, fingerprint, read_signed, remove_directory, scratch, verify
from pipeline.params import Params, Train, load_params

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "models", "pipeline", "stages")  # all code of the project
CHOICE = ("dataset", "encoder", "backbone", "adapter", "dim", "seed")  # what a run is chosen by, in params.yaml
# The directories and files of code that decide a run's weights and validation, in addition to its adapter, backbone and loss.
TRAINING_CODE = ("models/core", "pipeline/device.py", "pipeline/training")
# The code that decides its test ranks, analysis and row in a cell. dvc.yaml and grid/dvc.yaml list the same directories.
EVALUATION_CODE = ("pipeline/evaluation",)

CHECKPOINT = Path("data/checkpoints/selected")
EVALUATION = Path("metrics/evaluation.json")
SELECTED_RANKS = Path("data/ranks/selected.parquet")
EVALUATED = RUNS / "evaluate-selected.json"  # the run that these belong to, and their checksums


def watched(params: Params, read: Callable[[Params], Any]) -> Callable[[], None]:
    """Return a function that raises UserError if what a stage depends on was edited since `params` were loaded.

    DVC compares code and parameters after a stage, so it would take the result for one of the edited ones. read: returns the
    parameters that the stage uses, and the fingerprint of its code.
    """
    before = read(params)

    def unchanged() -> bool:
        forget()
        # A file may be half-written at this moment, a section or a module gone.
        with suppress(UserError, SyntaxError, OSError, UnicodeDecodeError, LookupError):
            return bool(read(load_params()) == before)
        return False

    def check() -> None:
        if not unchanged():
            raise UserError(
                "params.yaml or code was edited while this ran, so the result is of an earlier version and is not recorded; run "
                "the same command again"
            )

    return check


def raw_directory(dataset: str) -> Path:
    return Path("data/raw") / dataset


def sequences_directory(dataset: str) -> Path:
    return Path("data/sequences") / dataset


def embeddings_directory(dataset: str, encoder: str) -> Path:
    return Path("data/embeddings") / dataset / encoder


def preprocess_report(dataset: str) -> Path:
    """What preprocessing found and dropped, in sentences."""
    return RUNS / f"preprocess-{dataset}.json"


def spectrum_directory(dataset: str, encoder: str) -> Path:
    return Path("data/spectrum") / dataset / encoder


def preprocess_command(dataset: str) -> str:
    """Return the command that builds a dataset's sequences, for messages."""
    return f"`dvc repro data/dvc.yaml:preprocess@{dataset}`"


def svd_command(dataset: str) -> str:
    """Return the command that builds a dataset's spectrum, for messages."""
    return f"`dvc repro data/dvc.yaml:svd@{dataset}`"


@dataclass(frozen=True)
class Run:
    """A dataset, encoder, backbone, adapter, dim and seed, with the settings of the sections that the run uses."""

    dataset: str
    encoder: str
    backbone: str
    adapter: str
    dim: int
    seed: int
    settings: dict[str, Any]

    @classmethod
    def of(cls, params: Params, **choice: Any) -> "Run":
        """Return the selected run of `params`, with some values replaced.

        choice: any of dataset, encoder, backbone, adapter, dim and seed, and `changes`, {section: {option: value}} for settings.
        Raises UserError if the settings of training are then invalid.
        """
        chosen = {name: choice.get(name, getattr(params, name)) for name in CHOICE}
        settings = {
            "train": params.train.model_dump(),
            "backbone": params.backbones[chosen["backbone"]],
            "adapter": params.adapters[chosen["adapter"]],
            "evaluate": {"similarity": params.evaluate.similarity},  # used by validation, which chooses the weights
        }
        for section, changed in choice.get("changes", {}).items():
            settings[section] = settings[section] | changed
        Train.parse(settings["train"], "params.yaml: train, with the chosen changes")
        return cls(**chosen, settings=settings)

    @property
    def sequences(self) -> Path:
        return sequences_directory(self.dataset)

    @property
    def spectrum(self) -> Path:
        return spectrum_directory(self.dataset, self.encoder)

    @property
    def name(self) -> str:
        """The name of the run, for messages."""
        variant = self.settings["adapter"].get("variant", "full")
        which = "" if variant == "full" else f" {variant}"
        return f"{self.dataset}-{self.backbone}-{self.adapter}{which} dim {self.dim} seed {self.seed}"

    @property
    def choice(self) -> dict[str, Any]:
        """Dataset, encoder, backbone, adapter, dim, seed and settings."""
        return {name: getattr(self, name) for name in (*CHOICE, "settings")}

    def section_class(self, section: str) -> type[Section]:
        """Return the class that parses `train`, `backbone` or `adapter` of the settings; the latter two import torch."""
        if section == "train":
            return Train
        found: type[Section] = (BACKBONES.load(self.backbone) if section == "backbone" else ADAPTERS.load(self.adapter)).Config
        return found

    def config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the model; it is saved with the weights."""
        return self.choice | {"fingerprint": self.fingerprint}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the choice, the settings, the content of the inputs and the code that decides the numbers."""
        return fingerprint(
            [self.dataset, self.encoder, self.backbone, self.adapter, self.dim, self.seed, self.settings],
            read_signed(self.sequences / SIDECAR, preprocess_command(self.dataset)),
            read_signed(self.spectrum / SIDECAR, svd_command(self.dataset)),
            code_fingerprint(ROOT, self.code),
        )

    def verify_inputs(self) -> None:
        """Raise UserError if an input is damaged, or the spectrum was computed for other items than those of the sequences."""
        sequences = verify(self.sequences, preprocess_command(self.dataset))
        spectrum = verify(self.spectrum, svd_command(self.dataset))
        embeddings = spectrum.get("embeddings")
        items = embeddings.get("items") if isinstance(embeddings, dict) else None
        if items != sequences["files"].get("items.parquet"):
            raise UserError(
                f"{self.spectrum} was computed for other items than those of {self.sequences}; run {svd_command(self.dataset)}"
            )

    @property
    def code(self) -> tuple[str, ...]:
        """Files and directories, relative to the project's root, whose code decides the run's weights."""
        loss = self.settings["train"]["loss"]
        adapter = with_siblings(ROOT, ADAPTERS.file(self.adapter))  # SpecMLP imports WhitenRec
        return (*TRAINING_CODE, *adapter, BACKBONES.file(self.backbone), LOSSES.file(loss))

    @property
    def scratch(self) -> Path:
        """The directory of the finished run: weights, config.json, history.csv, training.json and run.json.

        A tested run also has analysis.json, spectrum.csv and ranks.parquet.
        """
        return scratch() / "runs" / self.fingerprint

    @property
    def finished(self) -> bool:
        """Whether the run is trained."""
        return (self.scratch / SIDECAR).is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let no other process on this machine train or test the run meanwhile; wait for one that does.

        If the run is finished, what a killed training left of its state is removed. The kernel releases the lock of a process
        that is killed.
        """
        lock = scratch() / "locks" / self.fingerprint
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{self.name}: waits for another process, which is training or testing it", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # the file system has no locks
                pass
            state = scratch() / "unfinished" / self.fingerprint
            if self.finished and state.is_dir():  # training was killed between putting its result in place and tidying up
                remove_directory(state)
            yield


def evaluation_code() -> str:
    """Return the fingerprint of the code that tests and analyses a run."""
    return code_fingerprint(ROOT, EVALUATION_CODE)
