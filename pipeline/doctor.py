"""Checks whether this machine can run the selected run: versions, device, encoder, cache, remote, disk."""

import platform
import shutil
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from common.dvc_state import broken_dvc_lock, conflicted_lock_file, default_remote
from common.errors import UserError, first_line
from common.secrets import masked
from pipeline.artifacts import SIDECAR, main_checkout, read_json
from pipeline.params import Encoder, Params
from pipeline.remotes import refuse_secrets, why_unreachable
from pipeline.runs import embeddings_directory, raw_directory, sequences_directory, spectrum_directory

if TYPE_CHECKING:
    from pipeline.embedding.encoder import TextEncoder

PACKAGES = ("dvc", "torch", "transformers", "numpy", "polars")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
GIT_LOCK = Path(".git/index.lock")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "spiece.model")


class Examination:
    """Checks for the selected run. `page` returns their results; `problems` then has those that would make the run fail."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.encoder = params.encoders[params.encoder]
        self.embeddings = embeddings_directory(params.dataset, params.encoder)
        self.spectrum = spectrum_directory(params.dataset, params.encoder)
        self.sequences = sequences_directory(params.dataset)
        self.missing = [path for path in (self.sequences, self.spectrum) if not (path / SIDECAR).is_file()]
        self.problems: list[str] = []

    def page(self) -> str:
        """Run all checks; return a line for each."""
        findings = {
            "python": f"{platform.python_version()}, {sys.executable}",
            "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
            "device": self.device(),
            "dtype": f"embeds in {self.dtype()} (encoders.{self.params.encoder}.dtype), "
            f"trains in {self.params.train.precision} (train.precision)",
            "data": self.data(),
            "model": str(self.model) if isinstance(self.model, UserError) else f"loads offline from {self.folder}",
            "embedding": self.embedding(),
            "cache": self.cache(),
            "locks": self.locks(),
            "remote": self.remote(),
            "secrets": self.secrets(),
            "disk": self.disk(),
        }
        return "\n".join(f"{name:10}{text}" for name, text in findings.items())

    def device(self) -> str:
        """Return the device that the run will use, and why."""
        import torch

        if torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory
            return f"cuda: {torch.cuda.get_device_name(0)}, {memory / 2**30:.0f} GiB; torch finds it, so it is used"
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU"
        return f"cpu, {torch.get_num_threads()} threads: {reason}"

    def data(self) -> str:
        """Return which artifacts of the run exist."""
        if not self.missing:
            return f"{self.sequences} and {self.spectrum} exist, so nothing is embedded"
        absent = " and ".join(map(str, self.missing))
        return f"{absent} missing; `dvc exp run evaluate --pull --allow-missing` fetches or builds them"

    @cached_property
    def folder(self) -> Path:
        """The encoder's local folder or GGUF file. Raises UserError if it is not on this machine."""
        return offline_folder(self.encoder)

    @cached_property
    def model(self) -> "TextEncoder | UserError":
        """The encoder, loaded offline with its weights checked but not read; or the error that prevents it."""
        from pipeline.embedding.encoder import TextEncoder

        try:
            encoder = TextEncoder(self.encoder.model_copy(update={"model": str(self.folder)}))
            encoder.check_weights()
        except UserError as error:
            return error
        return encoder

    def dtype(self) -> str:
        """Return the encoder's dtype, and what `auto` stands for on this machine."""
        from pipeline.embedding.pretrained import automatic_dtype

        return f"{automatic_dtype()}, by auto" if self.encoder.dtype == "auto" else self.encoder.dtype

    def embedding(self) -> str:
        """Return whether the embeddings come from the model on this machine, whose files DVC does not track."""
        from pipeline.embedding.pretrained import model_location

        recorded = read_json(self.embeddings / SIDECAR, "the embed stage").get("model") if self.embeddings.is_dir() else None
        if recorded is None:
            return f"{self.embeddings} is missing"
        if isinstance(self.model, UserError):
            return f"{self.embeddings} was embedded by model {recorded[:12]}; there is no model here to compare it with"
        from_hub = not Path(model_location(self.encoder.model)).exists() and self.folder.is_dir()
        current = self.folder.name if from_hub else self.model.identity  # the folder of a hub's snapshot is named by its commit
        if recorded == current:
            return f"{self.embeddings} was embedded by this model"
        message = (
            f"{self.embeddings} was embedded by model {recorded[:12]}, but this machine has model {current[:12]}; "
            f"`dvc repro -f -s data/dvc.yaml:embed@{self.params.dataset}` embeds again"
        )
        self.problems.append(message)
        return message

    @cached_property
    def links(self) -> tuple[str, list[str], str] | UserError:
        """DVC's cache, the types of link that its configuration lists, and the first type that works from here, or "copy".

        Or the error that keeps DVC from working here.
        """
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc.scm import SCMError
        from dvc_objects.fs import localfs
        from dvc_objects.fs.generic import test_links

        try:
            with Repo() as repo:
                folder, configured = repo.cache.local.path, repo.cache.local.cache_types
        except DvcException as error:  # an unpacked archive of the code has no .git
            here = ", or run `git init` here" if isinstance(error, SCMError) else ""
            return UserError(f"DVC cannot work in this folder: {first_line(error)}; bring the project by `git clone`{here}")
        working = test_links(configured, localfs, folder, localfs, str(Path("data/runs").absolute()))
        return folder, configured, working[0] if working else "copy"

    def cache(self) -> str:
        """Return how DVC's cache is linked to the workspace, or why DVC does not work here."""
        if isinstance(self.links, UserError):
            self.problems.append(str(self.links))
            return str(self.links)
        folder, configured, link = self.links
        if link == "copy":
            return f"copies: no link of .dvc/config works between {folder} and this folder; every artifact is on disk twice"
        failing = configured[: configured.index(link)]
        return f"{link}s: every artifact is on disk once" + (f" ({', '.join(failing)} does not work here)" if failing else "")

    def locks(self) -> str:
        """Whether a killed program left a lock that stops DVC, or a merge left marks in DVC's lock files."""
        found = [line for line in (broken_dvc_lock(), conflicted_lock_file()) if line]
        if GIT_LOCK.exists():  # DVC adds its files to git
            found.append(f"{GIT_LOCK} is there: git is at work, or was killed; if no git is at work, `rm {GIT_LOCK}`")
        self.problems += found
        return "; ".join(found) or "no lock was left behind"

    def remote(self) -> str:
        """Return whether the default remote answers."""
        remote = default_remote()
        if remote is None:
            silent = "none; `dvc remote add --default team <url>` adds one (docs/teamwork.md)"
        else:
            reason = why_unreachable(remote[0])
            silent = f"{remote[0]} ({remote[1]}) does not answer: {reason}" if reason else ""
        if silent and self.missing and isinstance(self.model, UserError) and self.encoder.model.startswith(("package:", "/")):
            self.problems.append("the run's data is missing, no remote has it, and the encoder to build it cannot be loaded")
        elif silent and not self.has_log and (absent := self.absent_files()):
            self.problems.append(f"the run's data is missing, no remote has it, and {absent}")
        message = silent if silent or remote is None else f"{remote[0]} ({remote[1]}) answers"
        return masked(message)

    @property
    def has_log(self) -> bool:
        """Whether the dataset can be made without its source: its sequences exist, or its raw files from which they are made."""
        return any((path / SIDECAR).is_file() for path in (self.sequences, raw_directory(self.params.dataset)))

    def absent_files(self) -> str:
        """Return which of the user's own files the dataset is made of is not here; "" if all are, or if it has no such files."""
        try:
            self.params.sources[self.params.dataset].own_files()
        except UserError as error:
            return str(error)
        return ""

    def secrets(self) -> str:
        """Return whether .dvc/config holds a secret."""
        try:
            refuse_secrets()
        except UserError as error:
            self.problems.append(str(error))
            return str(error)
        return "none in .dvc/config"

    def disk(self) -> str:
        """Return the free space and an estimate of what the run needs."""
        free = shutil.disk_usage(main_checkout()).free
        free_space = f"{free / 2**30:.1f} GiB free; the run needs "
        items, width = self.items(), self.width()
        if items is None:
            command = f"`dvc repro data/dvc.yaml:preprocess@{self.params.dataset}`"
            return f"{free_space}an amount that depends on the number of items, known after {command}"
        if width is None:
            return f"{free_space}an amount that depends on the width of the embeddings, known once the model is on this machine"
        copies = 2 if not isinstance(self.links, UserError) and self.links[2] == "copy" else 1
        need = artifact_bytes(items, width, self.params.dim) * copies
        if need > free:
            self.problems.append(f"the run needs about {need / 2**30:.1f} GiB of disk, {free / 2**30:.1f} are free")
        artifacts = f"embeddings, spectrum and weights of {items:,} items x {width}"
        return f"{free_space}about {need / 2**20:,.0f} MiB ({artifacts}{', twice' if copies == 2 else ''})"

    def items(self) -> int | None:
        """Return the number of items; None if it is not known before preprocessing."""
        statistics = self.sequences / "statistics.json"
        if statistics.is_file():
            return int(read_json(statistics, "the preprocess stage")["items"])
        return self.params.sources[self.params.dataset].known_items

    def width(self) -> int | None:
        """Return the number of columns of the embeddings; None if the model cannot be loaded."""
        return None if isinstance(self.model, UserError) else self.model.width


def artifact_bytes(items: int, width: int, dim: int) -> int:
    """Return an estimate of the bytes of a run's float32 artifacts.

    They are the embeddings (N x l); two spectra (N x r, l x r, r, l; r <= min(N, l)); and four arrays of the size of the weights
    (2 N x d): during training, the weights, the best weights and Adam's two moments; afterwards two copies of the weights.
    """
    rank = min(items, width)
    spectra = 2 * (items * rank + width * rank + rank + width)
    return 4 * (items * width + spectra + 4 * 2 * items * dim)


def offline_folder(encoder: Encoder) -> Path:
    """Return an encoder's local folder or GGUF file. Raises UserError if a part of it is not on this machine."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from pipeline.embedding.pretrained import GGUF, hub_file, model_location

    location = model_location(encoder.model)
    folder = Path(location)
    try:
        if folder.suffix == GGUF:
            if folder.is_file():
                return folder
            repository, file = hub_file(location)
            cached = try_to_load_from_cache(repository, file, revision=encoder.revision)
            if not isinstance(cached, str):
                raise UserError(f"{encoder.model} is not on this machine; `hf download {repository} {file}` downloads it")
            return Path(cached)
        if not folder.is_dir():
            folder = Path(snapshot_download(location, revision=encoder.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise UserError(f"{encoder.model} is not on this machine; `hf download {encoder.model}` downloads it") from None
    for kind, names in (
        ("configuration", _present(folder, ("config.json",))),
        ("tokenizer", _present(folder, TOKENIZERS)),
        ("weights", [*_present(folder, WEIGHTS), *_complete_indices(folder)]),
    ):
        if not names:
            raise UserError(f"{encoder.model} is incomplete in {folder}: its {kind} is missing")
    return folder


def _present(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Return the names of files that exist in a folder."""
    return [name for name in names if (folder / name).is_file()]


def _complete_indices(folder: Path) -> Iterator[str]:
    """Yield the index files of sharded weights whose shards all exist."""
    for name in _present(folder, INDICES):
        shards = set(read_json(folder / name, "the model's publisher")["weight_map"].values())
        if all((folder / shard).is_file() for shard in shards):
            yield name
