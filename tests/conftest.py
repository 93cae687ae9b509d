"""A tiny project that every test may change: parameters, sequences and spectrum of a generated dataset, built once."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.params import change_params

ROOT = Path(__file__).parents[1]
os.environ["TQDM_DISABLE"] = "1"
# The runs of a cell follow one another, in the process of the test: pytest uses the other cores already.
os.environ["LOKY_MAX_CPU_COUNT"] = "1"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes and long texts by their length: each process of pytest collects the tests itself and must find the same names,
    and gzip's bytes hold the second in which they were made.
    """
    return f"{len(val)} {type(val).__name__}" if isinstance(val, bytes) or (isinstance(val, str) and len(val) > 200) else None


def tiny_params() -> dict[str, Any]:
    """Return the repository's parameters with a tiny dataset and a short training."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["sources"]["tiny"] = {"kind": "demo", "seed": 0, "items": 120, "users": 150}
    params["encoders"]["random"] = {"model": "package:no_such_package/model"}
    params |= {"dataset": "tiny", "encoder": "random", "dim": 16}
    params["train"] |= {"epochs": 4, "patience": 2, "batch_size": 64, "negatives": 8}
    params["grid"] |= {"dim": 16, "datasets": ["tiny"], "adapters": ["base", "spectran"], "seeds": [0, 1]}
    return params


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with params.yaml, and the tiny dataset's artifacts up to the spectrum of random embeddings (rank 24)."""
    import numpy as np

    from pipeline.artifacts import atomic_directory, sha256, write_json
    from pipeline.data.interactions import build_sequences
    from pipeline.data.sources import Raw, demo, write_parquet_pair
    from pipeline.embedding.spectrum import decompose
    from pipeline.params import Preprocess

    root = tmp_path_factory.mktemp("tiny")
    (root / "params.yaml").write_text(yaml.safe_dump(tiny_params(), sort_keys=False), encoding="utf-8")
    with contextlib.chdir(root):  # artifacts are written inside the current project only
        raw = demo.generate(seed=0, n_items=120, n_users=150)
        with atomic_directory(Path("data/raw/tiny"), {"source": "tiny"}) as directory:
            write_parquet_pair(*raw, directory)
        sequences = build_sequences(Raw(*raw), Preprocess())
        with atomic_directory(Path("data/sequences/tiny"), {"dataset": "tiny"}) as directory:
            sequences.users.write_parquet(directory / "sequences.parquet")
            sequences.items.write_parquet(directory / "items.parquet")
            write_json(directory / "statistics.json", sequences.statistics)
        embeddings = np.random.default_rng(0).normal(size=(sequences.items.height, 24)).astype(np.float32)
        items = sha256(Path("data/sequences/tiny/items.parquet"))
        made_from = {"dataset": "tiny", "items": items}
        with atomic_directory(Path("data/embeddings/tiny/random"), made_from) as directory:
            np.save(directory / "embeddings.npy", embeddings)
        with atomic_directory(Path("data/spectrum/tiny/random"), {"embeddings": made_from}) as directory:
            decompose(Path("data/embeddings/tiny/random/embeddings.npy"), directory)
    return root


@contextlib.contextmanager
def inside(root: Path) -> Iterator[pytest.MonkeyPatch]:
    """Make a project, which has its own scratch, the current directory meanwhile; then torch's kernels are as before."""
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
            patch.delenv("SPECTRAN_SCRATCH", raising=False)
            yield patch
    finally:
        torch.use_deterministic_algorithms(deterministic)


def enter_copy(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a project and make the copy, which has its own scratch, the current directory; return it."""
    root = tmp_path / "project"
    shutil.copytree(project, root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("SPECTRAN_SCRATCH", raising=False)
    return root


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny project, as the current directory."""
    return enter_copy(tiny_project, tmp_path, monkeypatch)


@pytest.fixture
def set_params(project: Path) -> Callable[..., None]:
    """Change values of the project's params.yaml: `set_params({"train.epochs": 1})`."""
    return partial(change_params, project / "params.yaml")


@pytest.fixture
def amazon2014() -> Path:
    """The folder with the paper's datasets: $SPECTRAN_SHARED/data/amazon2014, or ../shared beside the repository."""
    shared = Path(os.environ.get("SPECTRAN_SHARED") or ROOT.parent / "shared")
    folder = shared / "data/amazon2014"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set SPECTRAN_SHARED to the folder that holds data/amazon2014")
    return folder


def add_strangers(root: Path) -> None:
    """Put users into the log whom preprocessing drops: one with two items of the catalogue, one with none."""
    import polars as pl

    from pipeline.artifacts import atomic_directory

    items = pl.read_parquet(root / "data/sequences/tiny/items.parquet")["item_id"]
    log = pl.read_parquet(root / "data/raw/tiny/interactions.parquet")
    rows = [("rare", items[7], 20), ("rare", items[3], 10), ("rare", "not kept", 15), ("gone", "not kept", 1)]
    catalogue = pl.read_parquet(root / "data/raw/tiny/items.parquet")
    with contextlib.chdir(root), atomic_directory(Path("data/raw/tiny"), {"source": "tiny"}) as directory:
        pl.concat([log, pl.DataFrame(rows, log.schema, orient="row")]).write_parquet(directory / "interactions.parquet")
        catalogue.write_parquet(directory / "items.parquet")


@pytest.fixture(scope="session")
def trained_project(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with a trained checkpoint, as `dvc repro` leaves it, and with users whom the core filter dropped."""
    root = tmp_path_factory.mktemp("trained") / "project"
    shutil.copytree(tiny_project, root)
    add_strangers(root)
    with inside(root) as patch:
        params = (root / "params.yaml").read_text()
        (root / "params.yaml").write_text(
            params.replace("adapter: base", "adapter: spectran", 1).replace("epochs: 4", "epochs: 2")
        )
        for stage in ("train", "evaluate"):
            patch.setattr(sys, "argv", [stage])
            import_module(f"stages.{stage}").main()
    return root


@pytest.fixture
def trained(trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained project, as the current directory."""
    return enter_copy(trained_project, tmp_path, monkeypatch)
