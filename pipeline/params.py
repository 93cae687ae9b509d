"""`params.yaml`, typed and validated. Importing this module does not import torch."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from common.errors import UserError
from common.names import check_form, check_name
from common.registry import Registry
from common.secrets import has_secret
from common.section import Section
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from models.losses import LOSSES
from pipeline.artifacts import atomic_file
from pipeline.data import SOURCES, Source, Ties
from pipeline.texts import fields

PARAMS_FILE = Path("params.yaml")
LARGEST_DIM = 2**16


def known(kind: str, name: str, registry: Registry) -> str:
    """`check_name` for validators of pydantic, which want a ValueError."""
    try:
        return check_name(kind, name, registry)
    except UserError as error:
        raise ValueError(str(error)) from None


class Download(Section):
    mirror: str | None = Field(
        None,
        description="folder or URL that holds the source's files; the official site if empty. A password belongs in ~/.netrc: "
        "git and dvc.lock keep what stands here",
    )

    @field_validator("mirror")
    @classmethod
    def _no_secret(cls, mirror: str | None) -> str | None:
        if mirror is not None and has_secret(mirror):
            raise ValueError("it has a password or token, which git and dvc.lock would keep; put it into ~/.netrc")
        return mirror


def source(values: Any) -> Source:
    """Validate one section of `sources:` by the class of its kind, which stands beside the code that reads such a source."""
    if not isinstance(values, dict) or "kind" not in values:
        raise ValueError(f"a source needs a kind; valid: {', '.join(SOURCES)}; found {values!r}")
    known("kind of source", values["kind"], SOURCES)
    config: type[Source] = SOURCES.load(values["kind"])
    return config.model_validate(values)


class Preprocess(Section):
    core: int = Field(
        5,
        ge=3,
        description="keep users and items with at least this many interactions, iterated; 3 or more, since "
        "leave-one-out needs a training, a validation and a test item",
    )
    cap: int = Field(13, ge=4, description="keep each user's most recent interactions")
    ties: Ties = Field(
        "shuffled",
        description="order of a user's interactions with the same timestamp: by item id, which an ID model learns; shuffled by a "
        "hash of user and item; or as in the source's file",
    )


class Encoder(Section):
    """A text encoder or causal language model that transformers loads, and how its hidden states become one row for each text.

    `model` is one of:
    - a Hugging Face id: `meta-llama/Meta-Llama-3-8B`;
    - a folder with config.json, tokenizer and weights;
    - a GGUF file, which is dequantised to `dtype` when it is loaded (needs the package gguf): a path that ends in `.gguf`, or
      `<owner>/<name>/<file>.gguf` on the Hugging Face hub. It holds its own configuration and tokenizer. A file
      that does not say `add_bos_token` gets no BOS; LLaMA-3 wants one: `prompt: '<|begin_of_text|>'`;
    - `package:<module>/<path>`: a folder or a GGUF file inside an installed Python package.
    """

    model: str = Field(description="Hugging Face id, folder, GGUF file, or `package:<module>/<path>` inside a Python package")
    revision: str | None = Field(None, description="commit, tag or branch of the Hugging Face repository")
    prompt: str = Field("", description="put before every text, e.g. 'passage: '")
    pooling: Literal["mean", "last", "cls"] = "mean"
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        description="layers whose hidden states are pooled, L2-normalised and put side by side (width x number of layers); "
        "0: output of the embedding layer, k: output of the k-th layer; the last layer alone if null",
    )
    pool_special_tokens: bool = Field(True, description="whether BOS, CLS and SEP take part in pooling")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_length: int = Field(256, ge=2, description="tokens; longer texts are cut, at the model's own limit at the latest")
    normalise: bool = Field(True, description="L2-normalise every row")
    batch_tokens: int = Field(4096, ge=1, description="tokens in a batch, padding counted; halved where memory runs out")
    device_map: Literal["auto"] | None = Field(None, description="auto: spread the model over the GPUs of one process")

    @field_validator("layers")
    @classmethod
    def _layers_once(cls, layers: list[int] | None) -> list[int] | None:
        if twice := [layer for layer in layers or [] if (layers or []).count(layer) > 1]:
            raise ValueError(f"lists {twice[0]} twice")
        return layers


class Svd(Section):
    rank_rtol: float | None = Field(
        None,
        ge=1e-6,
        lt=1,
        description="singular values up to this share of the first are dropped; those that rounding alone can make always are",
    )


class Train(Section):
    epochs: int = Field(200, ge=1, description="at most")
    patience: int = Field(10, ge=1, description="stop after this many epochs without a better validation NDCG@20")
    batch_size: int = Field(256, ge=1, description="users per step")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="coupled L2, inside Adam")
    loss: str = Field("info_nce", description="against drawn negatives, or the whole catalogue")
    negatives: int = Field(64, ge=1, description="per target, of info_nce")
    temperature: float = Field(0.07, gt=0)
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32", description="of matrix products in training; parameters, losses and rankings are float32 in any case"
    )
    max_history: int = Field(10, ge=1, description="most recent items that a backbone sees")
    optimiser: Literal["adam", "sparse_adam"] = Field(
        "adam", description="sparse_adam: rows of the catalogue that a step does not touch stay as they are, moments and all"
    )

    @field_validator("loss")
    @classmethod
    def _loss_exists(cls, loss: str) -> str:
        return known("loss", loss, LOSSES)

    @model_validator(mode="after")
    def _rows_alone(self) -> "Train":
        if self.optimiser == "sparse_adam" and not LOSSES.load(self.loss).samples_negatives:
            raise ValueError("optimiser sparse_adam wants loss info_nce: the full softmax touches every item; use adam with it")
        if self.optimiser == "sparse_adam" and self.weight_decay:
            raise ValueError("optimiser sparse_adam wants weight_decay 0: decay touches every row; use adam with it")
        return self


Similarity = Literal["cosine", "dot"]


class Evaluate(Section):
    cutoffs: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    similarity: Similarity = Field(
        "cosine",
        description="of user state and item, by which validation, which chooses the weights, and test rank; training is on the "
        "cosine. The test ranks under the other one are written too",
    )
    exclude_history: bool = Field(
        False,
        description="whether the test figures in the tables rank only items that the user has not had; both are written. "
        "Validation ranks all items",
    )


Variant = Literal["full", "without_attention", "principal_sigma", "principal_identity", "without_encoding"]


class Ablations(Section):
    datasets: list[str] = Field(description="none: no ablations")
    backbones: list[str]
    variants: list[Variant] = Field(min_length=1)


class Dimensions(Section):
    datasets: list[str] = Field(description="none: no other dims than `grid.dim`")
    backbones: list[str]
    adapters: list[str]
    dims: list[Annotated[int, Field(ge=1, le=LARGEST_DIM)]] = Field(min_length=1)


class GridTuning(Section):
    datasets: list[str] = Field(description="none: no tuning")
    backbones: list[str]
    losses: list[str] = Field(min_length=1)
    trials: int = Field(ge=1, description="per method, each a full run; 1: the settings of params.yaml alone")
    seed: int = Field(0, ge=0, description="of the trials and their suggestions; the finalists are also trained under seed + 1")

    @field_validator("losses")
    @classmethod
    def _losses_exist(cls, losses: list[str]) -> list[str]:
        return [known("loss", loss, LOSSES) for loss in losses]


class Grid(Section):
    dim: int = Field(ge=1, le=LARGEST_DIM)
    datasets: list[str] = Field(min_length=1)
    backbones: list[str] = Field(min_length=1)
    adapters: list[str] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    ablations: Ablations
    dimensions: Dimensions
    tuning: GridTuning

    @model_validator(mode="after")
    def _nothing_twice(self) -> "Grid":
        for section, name, values in (
            *(("", name, getattr(self, name)) for name in ("datasets", "backbones", "adapters", "seeds")),
            *(("ablations.", name, getattr(self.ablations, name)) for name in ("datasets", "backbones", "variants")),
            *(("dimensions.", name, getattr(self.dimensions, name)) for name in ("datasets", "backbones", "adapters", "dims")),
            *(("tuning.", name, getattr(self.tuning, name)) for name in ("datasets", "backbones", "losses")),
        ):
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{section}{name} lists {twice[0]!r} twice")
        return self


class Resources(Section):
    """What one run of the grid takes on a Ray cluster."""

    cores: int = Field(1, ge=1, description="and threads: numbers are the same for the same number of threads")
    memory: float = Field(1.0, gt=0, description="GiB; keeps runs apart that do not fit into a node together")
    gpus: float = Field(0.0, ge=0, description="0.25: four runs share a GPU")
    retries: int = Field(3, ge=0, description="of a run whose worker or node is lost; a run that fails is not tried again")

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("a share of one GPU, or a whole number of them")
        return gpus


class Params(Section):
    """The whole of `params.yaml`. Options of one adapter or backbone are checked by the class that owns them."""

    dataset: str
    encoder: str
    backbone: str
    adapter: str
    dim: int = Field(ge=1, le=LARGEST_DIM)
    seed: int = Field(ge=0)
    download: Download
    sources: dict[str, Annotated[SerializeAsAny[Source], BeforeValidator(source)]]
    templates: dict[str, str]
    preprocess: Preprocess
    encoders: dict[str, Encoder]
    svd: Svd
    train: Train
    backbones: dict[str, dict[str, Any]]
    adapters: dict[str, dict[str, Any]]
    evaluate: Evaluate
    resources: Resources
    grid: Grid

    def preprocessing(self, dataset: str) -> Preprocess:
        """How a dataset is preprocessed: as `preprocess` says, ties as the dataset's source says if it does."""
        source = self.sources[check_name("dataset", dataset, self.sources)]
        return self.preprocess.model_copy(update={"ties": source.ties or self.preprocess.ties})

    def check_cell(self, dataset: str, backbone: str, adapter: str) -> None:
        """Raise UserError for a name that is not there, with the nearest that is."""
        check_name("dataset", dataset, self.sources)
        check_name("backbone", backbone, self.backbones)
        check_name("adapter", adapter, self.adapters)

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        try:
            for kind, section in (("dataset", list(self.sources)), ("encoder", list(self.encoders))):
                for name in section:
                    check_form(kind, name)
            for name in self.backbones:
                check_name("backbone", name, BACKBONES)
            for name in self.adapters:
                check_name("adapter", name, ADAPTERS)
            check_name("dataset", self.dataset, self.sources)
            check_name("encoder", self.encoder, self.encoders)
            grid, ablations, dimensions, tuning = self.grid, self.grid.ablations, self.grid.dimensions, self.grid.tuning
            for kind, names, known in (
                (
                    "backbone",
                    [self.backbone, *grid.backbones, *ablations.backbones, *dimensions.backbones, *tuning.backbones],
                    self.backbones,
                ),
                ("adapter", [self.adapter, *grid.adapters, *dimensions.adapters], self.adapters),
                ("dataset", [*grid.datasets, *ablations.datasets, *dimensions.datasets, *tuning.datasets], self.sources),
                ("dataset", list(self.templates), self.sources),
            ):
                for name in names:
                    check_name(kind, name, known)
        except UserError as error:
            raise ValueError(str(error)) from None
        for name, template in self.templates.items():
            try:
                fields(template)
            except ValueError as error:
                raise ValueError(f"templates.{name}: {error}") from None
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and validate `path`; raise UserError with one line for a missing, broken or invalid file."""
    return Params.parse(read_yaml(path), str(path))


def choose_grid(lists: Path, path: Path = PARAMS_FILE) -> None:
    """Put the `grid:` section of `lists` in the place of that of `path`; every other line stays as it is."""
    values, chosen = read_yaml(path), read_yaml(lists)
    Params.parse(values | {"grid": chosen.get("grid")}, str(lists))
    section = re.compile(r"^grid:.*\n(?:(?:[ \t].*)?\n|- .*\n)*", re.MULTILINE)
    new = section.search(lists.read_text(encoding="utf-8").rstrip() + "\n")
    text = path.read_text(encoding="utf-8").rstrip() + "\n"
    if new is None or len(section.findall(text)) != 1:
        raise UserError(f"{path if new else lists} has no block `grid:` at the start of a line")
    with atomic_file(path) as partial:
        partial.write_text(section.sub(lambda _: new[0], text), encoding="utf-8")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in `path`; raise UserError with one line for a missing or broken file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found in {Path.cwd()}; run stages from the project's root") from None
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply") from None
    # Beside its own errors, PyYAML lets through those of int(), datetime.date() and so on: `2020-02-30`, `!!int ''`.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no parameters; restore it with `git checkout {path}`")
    return values
