"""Training on a longer log from the weights of an earlier run: rows of IDs go by item id, everything else is copied.

Learned matrices act on coordinates in the spectrum of the earlier catalogue. Another catalogue has a spectrum with other, rotated
directions, so the earlier directions are kept: the texts of all items, known or new, are projected onto them.
"""

import re
import shutil
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from common.errors import UserError
from models.core.adapter import Spectrum
from models.core.recommender import Recommender as Model
from pipeline.artifacts import atomic_directory, check_seal, fingerprint, open_array, read_json, remove_directory, sha256, verify
from pipeline.data.times import UNITS, as_date
from pipeline.embedding.spectrum import coordinates
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.params import PARAMS_FILE, Params
from pipeline.runs import Run, embeddings_directory, preprocess_command, sequences_directory, spectrum_directory
from pipeline.serving.new_items import RULES, shortened, text_ids
from pipeline.serving.recommender import BUFFERS, MADE_BY, Recommender
from pipeline.training.batches import items_before_test, load_sequences
from pipeline.training.inputs import FILES, load_spectrum
from pipeline.training.loop import (
    CONFIG,
    WEIGHTS,
    Progress,
    _save,
    _unfinished,
    build,
    evaluate_ranks,
    make_optimisers,
    train_run,
    use_deterministic_kernels,
)
from pipeline.training.metrics import ALL_ITEMS, headline, metrics
from pipeline.training.sequences import read_sequences
from pipeline.training.steps import Steps

CHECKPOINTS = Path("data/checkpoints")
SUFFIX = "-retrained"  # as in `params.DERIVED`
BLOCK = 65_536  # items whose coordinates are computed together


@dataclass(frozen=True)
class Retrained:
    """A retrained run: how its catalogue differs from the earlier one, its cost, and its test before and after the training.

    kept, new, dropped: numbers of items. before, after: {metric: value} with the weights that training started from, and with
    those of the best validation.
    """

    run: Run
    kept: int
    new: int
    dropped: int
    training: dict[str, Any]
    seconds: float
    before: dict[str, float]
    after: dict[str, float]


def retrain(params: Params, directory: Path, device: torch.device) -> Retrained:
    """Train the selected run of `params` from the weights of the checkpoint in `directory`, test it, and write its checkpoint.

    device: that of the training. An interrupted training resumes after its last finished epoch. Raises UserError if data are
    missing, for a checkpoint of the same dataset, of another adapter, backbone, dim or encoder, and for one that was trained on
    what is to be the validation.
    """
    if (of := dataset_of(directory)) == params.dataset or is_retrained(of, params.dataset):
        raise UserError(
            f"{directory} was trained on {params.dataset} already; give the longer log a section of its own under `sources:` in "
            f"{PARAMS_FILE} and select it by `dataset`, so that the earlier items and their spectrum stay"
        )
    old = Recommender.load(directory)
    check_same(old.run, Run.of(params), directory)
    check_times(old.run, params, directory)
    run = Run.of(params, dataset=write_dataset(old, params, directory))
    use_deterministic_kernels()
    model = start(old, run).to(device)
    sequences = load_sequences(run.sequences, run.settings["train"]["max_history"], device)
    test = (model, sequences.test_history, sequences.test_target, run.settings["evaluate"]["similarity"])
    column = headline(params.evaluate.exclude_history)
    before = evaluate_ranks(*test, items_before_test(run.sequences))[0 if column == ALL_ITEMS else 1]
    with run.lock():
        if not run.finished:
            save_start(model, run, device)
            train_run(run)
            torch.backends.cuda.matmul.allow_tf32 = False  # which a training with tf32 leaves on
        evaluate_run(run)
    write_checkpoint(run, old, params.dataset)
    after = pl.read_parquet(run.scratch / "ranks.parquet", glob=False)[column].to_numpy()
    now = pl.read_parquet(run.sequences / "items.parquet", glob=False)["item_id"]
    kept = int(now.is_in(old.item_ids).sum())
    return Retrained(
        run,
        kept,
        len(now) - kept,
        len(old.item_ids) - kept,
        read_json(run.scratch / "training.json", MADE_BY),
        read_json(run.scratch / "run.json", MADE_BY)["seconds"],
        metrics(before, params.evaluate.cutoffs),
        metrics(after, params.evaluate.cutoffs),
    )


def check_same(old: Run, new: Run, directory: Path) -> None:
    """Raise UserError if weights of `old` do not fit `new`. Options of training may differ, except the length of histories."""

    def decisive(run: Run) -> dict[str, Any]:
        options = {
            f"{of}s.{getattr(run, of)}.{name}": v for of in ("backbone", "adapter") for name, v in run.settings[of].items()
        }
        names = ("encoder", "backbone", "adapter", "dim")
        chosen = {name: getattr(run, name) for name in names}
        return chosen | options | {"train.max_history": run.settings["train"]["max_history"]}

    then, now = decisive(old), decisive(new)
    for name in then | now:
        if then.get(name) != now.get(name):
            raise UserError(
                f"{directory} was trained with {name} {then.get(name)}, {PARAMS_FILE} says {now.get(name)}, so its weights do "
                f"not fit; change {PARAMS_FILE}, or train from the seed by `dvc repro`"
            )


def check_times(old: Run, params: Params, directory: Path) -> None:
    """Raise UserError if the new log is split by time and `old` was trained on interactions after the new validation begins."""
    statistics = sequences_directory(params.dataset) / "statistics.json"
    found = read_json(statistics, preprocess_command(params.dataset))
    if "split" not in found:
        return
    valid_from, unit = found["split"]["valid_from"], found.get("time_unit", "s")
    unit_then = read_json(old.sequences / "statistics.json", preprocess_command(old.dataset)).get("time_unit", "s")
    users, _ = read_sequences(old.sequences)
    seen = users.select(pl.col("timestamps").list.head(pl.col("train")).list.max().max()).item()
    if seen * UNITS[unit] >= valid_from * UNITS[unit_then]:
        raise UserError(
            f"{directory} was trained on interactions until {as_date(seen, unit_then)}, but the validation of {params.dataset} "
            f"begins at {as_date(valid_from, unit)}: it would be asked what it has seen; choose a later valid_from"
        )


def write_dataset(old: Recommender, params: Params, directory: Path) -> str:
    """Write the sequences of the selected dataset and its items' spectrum in the directions of `old`; return their name.

    The name has eight digits of what they are made from, so that data of an earlier result stay until the next one is there.
    directory: of the checkpoint of `old`. Raises UserError if the embeddings are missing, of other items, or by another encoder.
    """
    dataset, encoder = params.dataset, params.encoder
    source, vectors = sequences_directory(dataset), embeddings_directory(dataset, encoder)
    sidecar = verify(source, preprocess_command(dataset))
    embed = f"`dvc repro data/dvc.yaml:embed@{dataset}`"
    embedded = verify(vectors, embed)
    if embedded.get("items") != sidecar["files"]["items.parquet"]:
        raise UserError(f"{vectors} was computed for other items than those of {source}; run {embed}")
    earlier = verify(old.run.spectrum, MADE_BY)
    for what in ("encoder", "model"):
        if earlier.get("embeddings", {}).get(what) != embedded.get(what):
            raise UserError(
                f"{vectors} was embedded by another version of {encoder} than {old.run.spectrum}, so its rows do not fit the "
                "weights; train from the seed by `dvc repro`"
            )
    # The weights are part of what the new run starts from, and so of its fingerprint.
    weights = {"run": old.run.fingerprint, "weights": sha256(directory / WEIGHTS)}
    name = f"{dataset}-{fingerprint(sidecar['checksum'], embedded['checksum'], weights)[:8]}{SUFFIX}"
    made_from = {key: value for key, value in sidecar.items() if key not in ("files", "checksum")}
    with atomic_directory(sequences_directory(name), made_from) as folder:
        for file in sidecar["files"]:
            shutil.copyfile(source / file, folder / file)
    with atomic_directory(spectrum_directory(name, encoder), {"embeddings": embedded, "start": weights}) as folder:
        write_spectrum(old, vectors / "embeddings.npy", folder)
    return name


def write_spectrum(old: Recommender, embeddings: Path, folder: Path) -> None:
    """Write sigma, V and mean of the earlier spectrum, plain and centred, and the rows of U that they give all items.

    As for new items without training, a row is at most as long as the longest of the earlier items. An adapter that whitens
    multiplies rows of U by sqrt(N - 1); the growth of N is divided out of the centred U, and sigma multiplied by it, so that its
    rows keep their scale.
    """
    spectrum = load_spectrum(old.run.spectrum)
    whitens = any(hasattr(old.model.adapter, name) for name in ("whitened", "semantics"))
    n_items = len(open_array(embeddings, "embed", "r"))
    factor = ((spectrum.n_items - 1) / (n_items - 1)) ** 0.5 if whitens else 1.0
    _project(spectrum, embeddings, folder, 1.0)
    _project(spectrum.centred, embeddings, folder / "centred", factor)


def _project(spectrum: Spectrum, embeddings: Path, folder: Path, factor: float) -> None:
    folder.mkdir(exist_ok=True)
    rows = open_array(embeddings, "embed", "r")
    longest = spectrum.U[torch.linalg.vector_norm(spectrum.U, dim=1).argmax()].unsqueeze(0)
    U = np.empty((len(rows), spectrum.rank), dtype=np.float32)
    for first in range(0, len(rows), BLOCK):
        block = torch.from_numpy(np.array(rows[first : first + BLOCK])).float()
        U[first : first + BLOCK] = (shortened(coordinates(spectrum, block), longest) * factor).numpy()
    arrays = {"U": U, "sigma": (spectrum.sigma / factor).numpy(), "V": spectrum.V.numpy(), "mean": spectrum.mean.numpy()}
    for name in FILES:
        np.save(folder / f"{name}.npy", arrays[name])


def start(old: Recommender, run: Run) -> Model:
    """Return the recommender that training starts from, on the CPU: the weights of `old`, and fresh rows for the new items.

    Where IDs start from texts (LLMInit, LLM-ESR), so do those of new items. Raises UserError if a weight has another shape.
    """
    spectrum = load_spectrum(run.spectrum)
    torch.manual_seed(run.seed)
    model = build(run, spectrum)
    adapter = old.model.adapter
    for name, tensor in _kept_buffers(old).items():
        model.adapter.get_buffer(name).copy_(tensor)
    rows = {item: row for row, item in enumerate(old.item_ids)}
    items = pl.read_parquet(run.sequences / "items.parquet", glob=False)["item_id"]
    place = torch.tensor([rows.get(item, -1) for item in items])  # (N,) rows of the earlier items, -1: new
    known, weights, earlier = place >= 0, model.state_dict(), old.model.state_dict()
    from_text = text_ids(adapter, run.settings["adapter"], load_spectrum(old.run.spectrum), spectrum.embeddings())
    for name, fresh in weights.items():
        trained = earlier[name]
        if name.removeprefix("adapter.") in (adapter.per_item or RULES):
            if from_text is not None:
                fresh.copy_(from_text)
            fresh[known] = trained[place[known]]
        elif fresh.shape == trained.shape:
            fresh.copy_(trained)
        else:
            raise UserError(
                f"{run.name}: {name} has shape {tuple(fresh.shape)} for {len(items):,} items, the weights have "
                f"{tuple(trained.shape)}; train from the seed by `dvc repro`"
            )
    return model


def save_start(model: Model, run: Run, device: torch.device) -> None:
    """Write the state before the first epoch, from which `train_run` goes on, unless a later state of this run is there."""
    try:
        check_seal(_unfinished(run), MADE_BY)
    except UserError:
        options = run.settings["train"]
        generator = torch.Generator(device).manual_seed(run.seed)
        torch.manual_seed(run.seed)
        steps = Steps(model, make_optimisers(model, options, device), generator, nullcontext, options["batch_size"])
        _save(run, Progress(), steps)


def checkpoint_of(dataset: str) -> Path:
    """The folder of the weights retrained on a dataset. Each log has its own, so that the weights that it started from stay."""
    return CHECKPOINTS / f"{dataset}{SUFFIX}"


def dataset_of(directory: Path) -> Any:
    """Return the dataset of a checkpoint, or None if there is no readable one."""
    with suppress(UserError):
        config = read_json(directory / CONFIG, MADE_BY)
        return config.get("dataset") if isinstance(config, dict) else None
    return None


def is_retrained(name: Any, dataset: str) -> bool:
    """Return whether a dataset's name is one that `write_dataset` gives to what it makes from `dataset`."""
    return isinstance(name, str) and bool(re.fullmatch(rf"{re.escape(dataset)}-[0-9a-f]{{8}}{SUFFIX}", name))


def write_checkpoint(run: Run, old: Recommender, dataset: str) -> None:
    """Write the run's weights, with what its adapter took from the first catalogue and must not take anew.

    The data of the checkpoint that this one replaces are removed, unless another checkpoint has them.
    """
    directory = checkpoint_of(dataset)
    replaced = dataset_of(directory)
    with atomic_directory(directory, {"run": run.fingerprint}) as folder:
        for name in (WEIGHTS, CONFIG):
            shutil.copyfile(run.scratch / name, folder / name)
        if buffers := _kept_buffers(old):
            save_file(buffers, folder / BUFFERS)
    used = {dataset_of(checkpoint) for checkpoint in CHECKPOINTS.iterdir()}
    if is_retrained(replaced, dataset) and replaced not in used:
        remove_directory(sequences_directory(replaced))
        remove_directory(spectrum_directory(replaced, run.encoder).parent)


def _kept_buffers(old: Recommender) -> dict[str, torch.Tensor]:
    """The tensors of the adapter that are neither trained nor have a row per item, such as the columns that LLMInit chose."""
    return {name: tensor for name, tensor in old.model.adapter.named_buffers() if name not in RULES}
