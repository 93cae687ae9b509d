"""Stages in one or several processes, as users start them: killed at any point, they give the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import psutil
import pytest
import yaml

from pipeline.artifacts import atomic_directory
from tests.pipeline.embedding.conftest import texts

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.Popen]:
    """Start `stages.embed mine tiny` on 3,000 texts in a separate project, by python or by accelerate in two processes.

    Without a GPU, `--multi_gpu` starts processes that take the CPU; `--cpu` alone would start one.
    """
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["sources"]["mine"] = {"kind": "files", "interactions": "log.csv", "items": "items.csv"}
    params["encoders"]["tiny"] = {"model": str(llama), "batch_tokens": 60}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    with atomic_directory(Path("data/sequences/mine"), {"template": "{title}"}) as directory:
        pl.DataFrame({"text": texts(3000)}).write_parquet(directory / "items.parquet")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def start(processes: int = 1, **more: str) -> subprocess.Popen:
        launcher = [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
        ]
        launcher += [f"--num_processes={processes}", "--main_process_port=0"]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "stages.embed", "mine", "tiny"]
        return subprocess.Popen(
            command, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    return start


def finish(process: subprocess.Popen) -> str:
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return printed


def kill(process: subprocess.Popen, rank: int | None = None) -> None:
    """Kill the process, or one of several, after some of its shards are written; wait for the end."""
    scratch = Path(os.environ["SPECTRAN_SCRATCH"]) / "embeddings"
    deadline = time.monotonic() + 120
    while len(list(scratch.glob("*/[0-9]*.npy"))) < 10:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    victims = [process.pid]
    if rank is not None:
        children = psutil.Process(process.pid).children(recursive=True)
        victims = [child.pid for child in children if child.environ().get("LOCAL_RANK") == str(rank)]
    assert len(victims) == 1
    os.kill(victims[0], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not Path("data/embeddings/mine/tiny").exists()


def taken() -> dict[str, bytes]:
    """Return the content of the artifact, and remove it."""
    folder = Path("data/embeddings/mine/tiny")
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    return content


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(run: Callable[..., subprocess.Popen]) -> None:
    assert "mine: 3,000 items x 16" in finish(run())
    undisturbed = taken()
    sidecar = json.loads(undisturbed["sidecar.json"])
    assert (sidecar["template"], sidecar["encoder"]["pooling"]) == ("{title}", "mean")
    assert list(Path(os.environ["SPECTRAN_SCRATCH"], "embeddings").iterdir()) == [], "finished: its shards are gone"
    kill(run())
    assert "shards from an earlier run" in finish(run())
    assert taken() == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_two_processes_make_the_bytes_of_one_also_when_one_of_them_dies(run: Callable[..., subprocess.Popen], rank: int) -> None:
    finish(run())
    undisturbed = taken()
    assert finish(run(2)).count("mine: 3,000 items x 16") == 1, "one process speaks"
    assert json.loads(Path("data/runs/embed-mine-tiny.json").read_text())["processes"] == 2
    assert taken() == undisturbed
    kill(run(2), rank)
    assert "shards from an earlier run" in finish(run(2 if rank else 1))
    assert taken() == undisturbed


@pytest.mark.slow
def test_a_process_that_fails_makes_the_launch_fail_and_leaves_the_shards(run: Callable[..., subprocess.Popen]) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["encoders"]["tiny"]["device_map"] = "auto"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    process = run(2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "embed: device_map: auto spreads one model over all GPUs" in errors
