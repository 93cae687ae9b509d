"""A package: one folder with a trained model and its catalogue, which runs without this project.

encoder.onnx      a batch of histories (B, L) and the item table (N, d) -> the users' states (B, d)
encoder.pt2       the same as a torch.export program
vectors.npy       the item table T, (N, d) float32
items.json        ids and titles, row i of item i
popularity.npy    interactions of every item, (N,) int64
config.json       what the model is: names, settings, shapes, the fingerprint of the run
README.md         the model card
serve.py          the server, and `Package` for Python; requirements.txt and Dockerfile belong to it
sidecar.json      the checksum of every file
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from common.errors import UserError, first_line
from models.core.recommender import Recommender as Model
from pipeline.artifacts import atomic_directory, write_json
from pipeline.serving import server
from pipeline.serving.card import model_card
from pipeline.serving.encoder import UserEncoder
from pipeline.serving.recommender import Recommender

PACKAGE = Path("data/packages/selected")
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # Python packages, of the extra `package`
TOLERANCE = 1e-4  # of states and scores, against the checkpoint's
TIED = 2e-6  # scores that differ by less may change places: rounding of float32 states
PARITY_USERS, PARITY_K = 1000, 10
REQUIREMENTS = ("fastapi", "numpy", "onnxruntime", "uvicorn")
DOCKERFILE = """\
# The server of this package: docker build --tag recommender . && docker run --rm --publish 127.0.0.1:8000:8000 recommender
FROM python:3.12-slim
RUN useradd --create-home server
USER server
WORKDIR /home/server/package
COPY --chown=server requirements.txt ./
RUN pip install --no-cache-dir --user --requirement requirements.txt
COPY --chown=server . .
EXPOSE 8000
CMD ["python", "serve.py", "--host", "0.0.0.0"]
"""


def export(model: Model, table: Tensor, max_history: int, directory: Path) -> None:
    """Write encoder.pt2 and encoder.onnx, whose batch size is free. table: (N, d)."""
    n_items = len(table)
    example = torch.full((3, max_history), n_items)
    example[0, -1] = example[1, :] = 0
    encoder = UserEncoder(model, packed=False)
    with torch.no_grad(), _quiet():
        shapes = {"history": {0: torch.export.Dim("batch")}, "table": None}
        program = torch.export.export(encoder, (example, table), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        exported = torch.onnx.export(
            program, dynamo=True, input_names=["history", "table"], output_names=["states"], verbose=False
        )
        assert exported is not None
        exported.save(directory / "encoder.onnx")
        program._example_inputs = None  # it would be a second copy of the table
        saved = io.BytesIO()  # into a file on a full disk, torch's writer aborts the process
        torch.export.save(program, saved)
        (directory / "encoder.pt2").write_bytes(saved.getbuffer())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress and their remarks on packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_package(
    recommender: Recommender, target: Path = PACKAGE, check_unchanged: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Write the package of a trained run, compare it with the checkpoint, and only then put it in place.

    check_unchanged: called before the package is put in place; may raise UserError, as `runs.watched` does.

    Returns the figures of the comparison. Raises UserError if a Python package is missing, or if the comparison fails.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"Python package '{missing[0]}' is missing; `pip install '.[package]'`")
    run = recommender.run
    config = {
        "format": server.FORMAT,
        "name": run.name,
        "run": run.fingerprint,
        "items": len(recommender.item_ids),
        "new_items": len(recommender.item_ids) - recommender.model.adapter.n_items,
        "dim": run.dim,
        "max_history": recommender.max_history,
        "similarity": recommender.similarity,
        "made_by": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        **run.choice,
    }
    with atomic_directory(target, {"run": run.fingerprint}) as directory:
        export(recommender.model, recommender.table, recommender.max_history, directory)
        np.save(directory / "vectors.npy", recommender.table.numpy())
        np.save(directory / "popularity.npy", recommender.interactions.astype(np.int64))
        write_json(directory / "items.json", {"ids": recommender.item_ids, "titles": recommender.titles})
        write_json(directory / "config.json", config)
        (directory / "README.md").write_text(model_card(recommender), encoding="utf-8")
        (directory / "serve.py").write_bytes(Path(server.__file__).read_bytes())
        (directory / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")
        lines = [f"{name}=={version(name)}" if find_spec(name) else name for name in REQUIREMENTS]
        (directory / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        compared = compare(directory, recommender)
        check_unchanged()
    return compared


def compare(directory: Path, recommender: Recommender) -> dict[str, float]:
    """Compare a package, in onnxruntime, with the checkpoint that it was made from, for up to PARITY_USERS users.

    Returns the largest differences of states and scores. Raises UserError if one is above TOLERANCE, and where the ten best
    items differ otherwise than by the order of scores closer than TIED.
    """
    package = server.Package(directory, check=False)
    users = np.linspace(0, recommender.users.height - 1, min(PARITY_USERS, recommender.users.height)).astype(int)
    histories = [recommender.users["items"][int(user)].to_numpy() for user in users]
    histories = [history[: 1 + i % len(history)] for i, history in enumerate(histories)]  # of every length
    ours = recommender.states(histories).numpy()
    states = np.concatenate([package.states(histories[i : i + 64]) for i in range(0, len(histories), 64)])
    of_states = float(np.abs(states - ours).max())
    ids = [[recommender.item_ids[i] for i in history] for history in histories]
    k = min(PARITY_K, len(recommender.item_ids))
    expected = recommender.recommend(ids, k).partition_by("request", as_dict=True)
    of_scores = 0.0
    for i, history in enumerate(ids):
        found = package.recommend(history, k)["items"]
        rows = expected.get((i,), pl.DataFrame(schema={"item_id": pl.String, "score": pl.Float64}))
        scores = dict(zip(rows["item_id"], rows["score"], strict=True))
        if len(found) != rows.height:
            raise UserError(f"the package recommends {len(found)} items where the checkpoint recommends {rows.height}")
        for item, score in zip(found, rows["score"], strict=True):
            # An item that the checkpoint ranks below the tenth is as good as the tenth, or wrong.
            own = scores.get(item["item_id"], item["score"])
            if abs(own - score) > TIED:
                raise UserError(
                    f"the package recommends {item['item_id']} where the checkpoint has another item, after the history "
                    f"{history}; it was not kept"
                )
            of_scores = max(of_scores, abs(item["score"] - score))
    if not max(of_states, of_scores) <= TOLERANCE:
        raise UserError(
            f"the package's states differ from the checkpoint's by {of_states:.1e} and its scores by {of_scores:.1e}, above "
            f"{TOLERANCE}; it was not kept"
        )
    return {"users": len(users), "states": of_states, "scores": of_scores}


def push_to_hub(directory: Path, repository: str, kind: str | None) -> str:
    """Upload a package to a model repository of the Hugging Face hub; return its address. kind: of the data's source.

    Raises UserError for a package made from data that may be used for research only or whose source is not known, for a
    repository that is public, and if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if kind is None or kind == "amazon2014":
        why = "the Amazon 2014 reviews are for research use only" if kind else "it is not known which data it was made from"
        raise UserError(f"{directory} is not uploaded: {why}")
    try:
        api = HfApi()
        api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        if not api.repo_info(repository, repo_type="model").private:
            raise UserError(
                f"{repository} is there already and is public, and the package holds the catalogue's titles, so nothing was "
                "uploaded; make it private, or name another"
            )
        info = api.upload_folder(repo_id=repository, folder_path=directory, commit_message="A package of SpecTran adapters")
    except Exception as error:
        of_network = type(error).__module__.startswith("httpx")  # or httpx2, which versions of the hub differ in
        if not (isinstance(error, HfHubHTTPError | HFValidationError | OSError) or of_network):
            raise
        raise UserError(f"{repository}: not uploaded ({first_line(error)}); see `hf auth login`") from None
    return str(info.commit_url)
