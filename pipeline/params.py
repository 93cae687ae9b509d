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
from pipeline.data import SOURCES, Moment, Source, Split, Ties, out_of_order
from pipeline.texts import TITLE, fields

PARAMS_FILE = Path("params.yaml")
LARGEST_DIM = 2**16
DERIVED = {"-cold": "cold", "-retrained": "retrain"}  # ends of the names of datasets that a stage makes from another
SPLIT = ("split", "valid_from", "test_from")  # options of `preprocess`


def known(kind: str, name: str, registry: Registry) -> str:
    """Return `check_name`, but raise ValueError as pydantic's validators must."""
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
    """Return one section of `sources:`, validated by the class of its kind, which is defined where such a source is read."""
    if not isinstance(values, dict) or "kind" not in values:
        raise ValueError(f"a source needs a kind; valid: {', '.join(SOURCES)}; found {values!r}")
    known("kind of source", values["kind"], SOURCES)
    config: type[Source] = SOURCES.load(values["kind"])
    return config.model_validate(values)


class Preprocess(Section):
    core: int = Field(
        5,
        ge=3,
        description="keep users and items with at least this many interactions, repeated until none is removed; at least 3: "
        "leave-one-out needs a training, a validation and a test item",
    )
    cap: int = Field(
        13, ge=4, description="keep each user's most recent interactions; with split global, of those before valid_from"
    )
    ties: Ties = Field(
        "shuffled",
        description="order of a user's interactions with the same timestamp. item: by item id, an artificial order that ID "
        "models learn; shuffled: by a hash of user and item; file: as in the source's file",
    )
    split: Split = Field(
        "leave_one_out",
        description="leave_one_out: a user's last item is the test target, the one before it the validation target; global: "
        "training is what happened before valid_from; the targets are a user's first items from valid_from and from test_from on",
    )
    valid_from: Moment | None = Field(
        None, description="for split global: a date, in UTC unless it names a zone, or a number, whose unit is told by its size"
    )
    test_from: Moment | None = Field(None, description="for split global, as valid_from")


class Encoder(Section):
    """A text encoder or causal language model that transformers loads, and how its hidden states become one row per text.

    `model` is one of:
    - a Hugging Face id: `meta-llama/Meta-Llama-3-8B`;
    - a folder with config.json, tokenizer and weights;
    - a GGUF file, which is dequantised to `dtype` at loading (needs the package gguf): a path that ends in `.gguf`, or
      `<owner>/<name>/<file>.gguf` on the Hugging Face hub. It contains configuration and tokenizer. Without `add_bos_token` in
      the file, texts get no BOS token; LLaMA-3 needs one: `prompt: '<|begin_of_text|>'`;
    - `package:<module>/<path>`: a folder or a GGUF file inside an installed Python package.
    """

    model: str = Field(description="Hugging Face id, folder, GGUF file, or `package:<module>/<path>` inside a Python package")
    revision: str | None = Field(None, description="commit, tag or branch of the Hugging Face repository")
    prompt: str = Field("", description="put before every text, e.g. 'passage: '")
    pooling: Literal["mean", "last", "cls"] = "mean"
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        description="layers whose hidden states are pooled, L2-normalised and concatenated (width x number of layers); "
        "0: output of the embedding layer, k: output of the k-th layer; null: the last layer",
    )
    pool_special_tokens: bool = Field(True, description="whether BOS, CLS and SEP take part in pooling")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="of the model; auto: bfloat16 on GPUs and processors that are faster with it (docs/embeddings.md)",
    )
    max_length: int = Field(
        256, ge=2, description="tokens; longer texts are truncated, as are texts beyond the model's own limit"
    )
    normalise: bool = Field(True, description="L2-normalise every row")
    batch_tokens: int = Field(4096, ge=1, description="tokens in a batch, including padding; halved if memory runs out")
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
        description="singular values up to this share of the first are dropped; those that rounding can explain always are",
    )


class Train(Section):
    epochs: int = Field(200, ge=1, description="at most")
    patience: int = Field(10, ge=1, description="stop after this many epochs without a better validation NDCG@20")
    batch_size: int = Field(256, ge=1, description="users per step")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="coupled L2, inside Adam")
    loss: str = Field("info_nce", description="info_nce: against sampled negatives; cross_entropy: against all items")
    negatives: int = Field(64, ge=1, description="sampled items per target, for info_nce")
    temperature: float = Field(0.07, gt=0)
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="of matrix products in training (tf32: in validation too); parameters and test ranks are always float32",
    )
    max_history: int = Field(10, ge=1, description="most recent items that a backbone sees")
    optimiser: Literal["adam", "sparse_adam"] = Field(
        "adam", description="sparse_adam: updates only the embedding rows, and their moments, that are used in the step"
    )

    @field_validator("loss")
    @classmethod
    def _loss_exists(cls, loss: str) -> str:
        return known("loss", loss, LOSSES)

    @model_validator(mode="after")
    def _sparse_adam_is_possible(self) -> "Train":
        if self.optimiser == "sparse_adam" and not LOSSES.load(self.loss).samples_negatives:
            raise ValueError(
                "optimiser sparse_adam needs loss info_nce, because the full softmax uses every item; use adam instead"
            )
        if self.optimiser == "sparse_adam" and self.weight_decay:
            raise ValueError("optimiser sparse_adam needs weight_decay 0, because decay changes every row; use adam instead")
        return self


Similarity = Literal["cosine", "dot"]


class Evaluate(Section):
    cutoffs: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    similarity: Similarity = Field(
        "cosine",
        description="similarity of user state and item by which validation and test rank; training always uses the cosine. "
        "Test ranks by the other similarity are written too",
    )
    exclude_history: bool = Field(
        False,
        description="whether test metrics in the tables rank only items outside the user's history; both are written. "
        "Validation ranks all items",
    )


Variant = Literal["full", "without_attention", "principal_sigma", "principal_identity", "without_encoding"]


class Ablations(Section):
    datasets: list[str] = Field(description="empty: no ablations")
    backbones: list[str]
    variants: list[Variant] = Field(min_length=1)


class Dimensions(Section):
    datasets: list[str] = Field(description="empty: no other dims than `grid.dim`")
    backbones: list[str]
    adapters: list[str]
    dims: list[Annotated[int, Field(ge=1, le=LARGEST_DIM)]] = Field(min_length=1)


class GridTuning(Section):
    datasets: list[str] = Field(description="empty: no tuning")
    backbones: list[str]
    losses: list[str] = Field(min_length=1)
    trials: int = Field(ge=1, description="trials per method, each a full run; 1: only the settings of params.yaml")
    seed: int = Field(0, ge=0, description="seed of the trials and of the sampler; the finalists are also trained with seed + 1")

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
    """The resources of one run of the grid on a Ray cluster."""

    cores: int = Field(1, ge=1, description="cores and threads of a run; the same number of threads gives the same numbers")
    memory: float = Field(1.0, gt=0, description="GiB; Ray starts no more runs on a node than fit into its memory")
    gpus: float = Field(0.0, ge=0, description="GPUs of a run; 0.25: four runs share a GPU")
    retries: int = Field(3, ge=0, description="retries of a run whose worker or node was lost; a run that fails is not retried")

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("expected a fraction of one GPU, or a whole number of GPUs")
        return gpus


class Params(Section):
    """All of `params.yaml`. The options of adapters and backbones are checked by their own classes."""

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
        """Return the preprocessing options of a dataset: `preprocess`, replaced by what the dataset's source sets itself."""
        source = self.sources[check_name("dataset", dataset, self.sources)]
        own = {name: value for name in Preprocess.model_fields if (value := getattr(source, name)) is not None}
        return self.preprocess.model_copy(update=own)

    def of_preprocessing(self, dataset: str) -> dict[str, Any]:
        """All that decides a dataset's sequences beside its raw files: options, and the template of its texts."""
        options: dict[str, Any] = self.preprocessing(dataset).model_dump()
        if options["split"] == "leave_one_out":  # as it was before there was a choice, so that artifacts stay current
            options = {name: value for name, value in options.items() if name not in SPLIT}
        if (least := getattr(self.sources[dataset], "min_rating", None)) is not None:
            options["min_rating"] = least
        return {"preprocess": options, "template": self.templates.get(dataset, TITLE)}

    def places_of_split(self, dataset: str) -> dict[str, str]:
        """Return where the dates of a dataset's split are written: `sources.<dataset>.valid_from` or `preprocess.valid_from`."""
        source = self.sources[dataset]
        return {
            name: f"preprocess.{name}" if getattr(source, name) is None else f"sources.{dataset}.{name}" for name in SPLIT[1:]
        }

    def ties_chosen(self, dataset: str) -> bool:
        """Whether somebody wrote the order of ties: in the source's section, or in `preprocess` where its kind has none."""
        source = self.sources[dataset]
        return "ties" in source.model_fields_set or source.ties is None

    def check_cell(self, dataset: str, backbone: str, adapter: str) -> None:
        """Raise UserError for an unknown name, with the nearest valid one."""
        check_name("dataset", dataset, self.sources)
        check_name("backbone", backbone, self.backbones)
        check_name("adapter", adapter, self.adapters)

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        try:
            for kind, section in (("dataset", list(self.sources)), ("encoder", list(self.encoders))):
                for name in section:
                    check_form(kind, name)
            for suffix, stage in DERIVED.items():
                for name in self.sources:
                    if name.removesuffix(suffix) != name and name.removesuffix(suffix) in self.sources:
                        of = name.removesuffix(suffix)
                        raise UserError(f"sources.{name}: `python -m stages.{stage}` of {of} would replace its files; rename it")
            for name in self.backbones:
                check_name("backbone", name, BACKBONES)
            for name in self.adapters:
                check_name("adapter", name, ADAPTERS)
            check_name("dataset", self.dataset, self.sources)
            check_name("encoder", self.encoder, self.encoders)
            grid, ablations, dimensions, tuning = self.grid, self.grid.ablations, self.grid.dimensions, self.grid.tuning
            datasets = [*grid.datasets, *ablations.datasets, *dimensions.datasets, *tuning.datasets]
            for kind, names, known in (
                (
                    "backbone",
                    [self.backbone, *grid.backbones, *ablations.backbones, *dimensions.backbones, *tuning.backbones],
                    self.backbones,
                ),
                ("adapter", [self.adapter, *grid.adapters, *dimensions.adapters], self.adapters),
                ("dataset", datasets, self.sources),
                ("dataset", list(self.templates), self.sources),
            ):
                for name in names:
                    check_name(kind, name, known)
        except UserError as error:
            raise ValueError(str(error)) from None
        for name in dict.fromkeys([self.dataset, *datasets]):
            options = self.preprocessing(name)
            valid_from, test_from = options.valid_from, options.test_from
            if options.split != "global":
                continue
            if valid_from is None or test_from is None:
                raise ValueError(f"the split of {name} is global, so preprocess or sources.{name} needs valid_from and test_from")
            if out_of_order(valid_from, test_from):
                valid, test = self.places_of_split(name).values()
                raise ValueError(f"{valid}, {valid_from}, is not before {test}, {test_from}")
        for name, template in self.templates.items():
            try:
                fields(template)
            except ValueError as error:
                raise ValueError(f"templates.{name}: {error}") from None
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Return the validated parameters of `path`. Raises UserError if the file is missing, broken or invalid."""
    return Params.parse(read_yaml(path), str(path))


class _Loader(yaml.SafeLoader):
    """Reads `yes`, `no`, `on` and `off` as text, as YAML 1.2 and so DVC do: DVC writes a column named `No` without quotes."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text. Raises the errors of PyYAML."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises UserError if the file is missing or broken, or holds no mapping."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found in {Path.cwd()}; run stages from the project's root") from None
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply") from None
    # PyYAML also raises the errors of int(), datetime.date() and so on, for values such as `2020-02-30` and `!!int ''`.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no parameters; restore it with `git checkout {path}`")
    return values
