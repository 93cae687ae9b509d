"""A package gives the checkpoint's answers, and is not kept where it does not."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from models.adapters import ADAPTERS
from models.backbones import BACKBONES
from pipeline.serving import package as packaging
from pipeline.serving.card import source_kind
from pipeline.serving.package import PACKAGE, push_to_hub, write_package
from pipeline.serving.recommender import Recommender
from pipeline.serving.server import Package, PackageError

pytestmark = pytest.mark.xdist_group("serving")

ROOT = Path(__file__).parents[3]


def same_answers(package: Package, checkpoint: Recommender, k: int = 10) -> None:
    """For every user: the same ten items, titles and scores; only items whose scores differ by rounding may change places."""
    histories = [checkpoint.history_of(user) for user in checkpoint.users["user_id"]]
    for mine in checkpoint.recommend(histories, k + 1).partition_by("request"):  # the last two may change places too
        score = dict(zip(mine["item_id"], mine["score"], strict=True))
        title = dict(zip(mine["item_id"], mine["title"], strict=True))
        found = package.recommend(histories[mine["request"][0]], k)
        items = [item["item_id"] for item in found["items"]]
        assert len(set(items)) == k
        np.testing.assert_allclose([score[item] for item in items], mine["score"][:k], rtol=0, atol=2e-6)
        np.testing.assert_allclose([item["score"] for item in found["items"]], mine["score"][:k], rtol=0, atol=1e-4)
        assert [item["title"] for item in found["items"]] == [title[item] for item in items]
        assert found["source"] == "model"


def test_a_package_answers_as_the_checkpoint_does(packaged: Path, checkpoint: Recommender) -> None:
    same_answers(Package(packaged), checkpoint)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_does_not_abort_the_process(
    checkpoint: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.export.save to a path would: its writer throws when it is destroyed. A limit of the file size stands for the disk."""
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(save=lambda path: None))
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            packaging.export(checkpoint.model, checkpoint.table, 5, tmp_path)
        except OSError as error:
            os._exit(7 if error.errno == errno.EFBIG else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_lists_and_popularity_answer_as_the_checkpoint_does(packaged: Path, checkpoint: Recommender) -> None:
    package, ids = Package(packaged), checkpoint.item_ids
    for history in (ids[:3], []):
        for options in (
            {"exclude_history": False},
            {"allow": ids[:30]},
            {"allow": ids[:30], "deny": ids[10:25]},
            {"deny": ids[5:]},
            {"allow": []},
        ):
            expected = checkpoint.recommend([history], 8, **options)
            found = package.recommend(history, 8, **options)
            assert [item["item_id"] for item in found["items"]] == expected["item_id"].to_list()
            assert set(expected["source"]) <= {found["source"]}


def test_unknown_items_are_an_error_or_passed_over(packaged: Path, checkpoint: Recommender) -> None:
    package, ids = Package(packaged), checkpoint.item_ids
    with pytest.raises(PackageError, match="history: unknown item 'new'"):
        package.recommend([ids[0], "new"])
    assert package.recommend([ids[0], "new"], skip_unknown=True) == package.recommend(ids[:1])
    assert package.recommend(["new"], skip_unknown=True)["source"] == "popularity"
    with pytest.raises(PackageError, match="unknown item 'new'"):
        package.recommend(ids[:1], deny=(item for item in ["new"]))


@pytest.mark.parametrize(
    ("history", "k", "says"),
    [
        ([1], 10, "history: expected item ids as text, found 1"),
        ("item", 10, "history: expected a list of item ids, found the text 'item'"),
        ([], -1, "k is -1; choose at least 1"),
    ],
)
def test_a_mistake_in_python_is_one_line_too(packaged: Path, history: Any, k: int, says: str) -> None:
    with pytest.raises(PackageError, match=f"^{says}$"):
        Package(packaged).recommend(history, k)


def test_a_package_that_is_replaced_while_it_is_read_is_refused(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server that starts while the next package is renamed into place: it would mix the items of both."""
    folder = tmp_path / "package"
    shutil.copytree(packaged, folder)
    load = np.load

    def replacing(path: Path, **options: Any) -> np.ndarray:
        (folder / "sidecar.json").write_text("{}")
        return load(path, **options)

    monkeypatch.setattr(np, "load", replacing)
    with pytest.raises(PackageError, match="was replaced while it was read; start again"):
        Package(folder)


def test_an_encoder_that_this_onnxruntime_cannot_read_is_one_line(packaged: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(packaged, folder)
    (folder / "encoder.onnx").write_bytes(b"of a later format")
    with pytest.raises(PackageError, match=r"encoder\.onnx: onnxruntime \S+ cannot read it: [^\n]*; run `pip install -r req"):
        Package(folder, check=False)


def test_a_package_runs_elsewhere_and_without_this_project(packaged: Path, checkpoint: Recommender, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(packaged, folder)
    history = checkpoint.item_ids[:3]
    code = (
        f"import sys, json; sys.path.insert(0, '.')\nfrom serve import Package\n"
        f"print(json.dumps(Package('.').recommend({history!r})))\n"
        "mine = {'torch', 'polars', 'pydantic', 'pipeline', 'models', 'common', 'fastapi'} & set(sys.modules)\n"
        "assert not mine, mine"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = checkpoint.recommend([history])["item_id"].to_list()
    assert [item["item_id"] for item in json.loads(done.stdout)["items"]] == expected


def test_a_package_holds_no_path_of_this_machine(packaged: Path) -> None:
    import zipfile

    texts = {file.name: file.read_bytes() for file in packaged.iterdir()}
    with zipfile.ZipFile(packaged / "encoder.pt2") as archive:
        texts |= {name: archive.read(name) for name in archive.namelist()}
    for place in (ROOT, sys.prefix, packaged.parents[1]):
        assert [name for name, content in texts.items() if str(place).encode() in content] == []


def test_the_adapters_item_rows_are_in_the_package_once(packaged: Path, checkpoint: Recommender) -> None:
    """The encoder reads the table as an input: neither the spectrum nor a second table is inside."""
    backbone = sum(parameter.numel() for parameter in checkpoint.model.backbone.parameters()) * 4
    for name in ("encoder.onnx", "encoder.pt2"):
        assert (packaged / name).stat().st_size < backbone + 150_000


def test_a_package_of_other_weights_is_refused_and_the_old_one_stays(
    trained: Path, packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = Recommender.load()
    PACKAGE.mkdir(parents=True)
    (PACKAGE / "kept").write_text("kept")
    monkeypatch.setattr(
        packaging, "export", lambda *given: [shutil.copy(packaged / f"encoder.{end}", given[-1]) for end in ("onnx", "pt2")]
    )
    write_package(recommender, PACKAGE.parent / "equal")
    with torch.no_grad():
        recommender.model.backbone.position += 0.1
    with pytest.raises(UserError, match="it was not kept"):
        write_package(recommender)
    assert [file.name for file in PACKAGE.iterdir()] == ["kept"]
    assert not list(Path("data").rglob("*.partial"))


def test_a_missing_python_package_is_one_line_that_names_the_extra(
    checkpoint: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"^Python package 'onnxscript' is missing; `pip install '\.\[package\]'`$"):
        write_package(checkpoint)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda folder: (folder / "encoder.onnx").write_bytes((folder / "encoder.onnx").read_bytes()[:-1]),
            "encoder.onnx is damaged",
        ),
        (lambda folder: (folder / "vectors.npy").unlink(), "vectors.npy is missing"),
        (lambda folder: (folder / "sidecar.json").write_text("{"), "sidecar.json is missing or damaged"),
        (lambda folder: (folder / "sidecar.json").write_text("[]"), "sidecar.json is missing or damaged"),
        (lambda folder: (folder / "sidecar.json").write_text("[" * 100_000), "sidecar.json is missing or damaged"),
        (lambda folder: (folder / "sidecar.json").write_text("{}"), "is no package"),
        (lambda folder: shutil.rmtree(folder), "is no package; `python -m stages.package` makes one"),
        (lambda folder: of_format(folder, 2), "is a package of format 2, this server reads 1"),
    ],
)
def test_a_damaged_package_is_one_line(packaged: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str) -> None:
    folder = tmp_path / "package"
    shutil.copytree(packaged, folder)
    damage(folder)
    with pytest.raises(PackageError) as refused:
        Package(folder)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def of_format(folder: Path, version: int) -> None:
    """A package as another version of the project would write it, checksums and all."""
    from pipeline.artifacts import sha256

    config = json.loads((folder / "config.json").read_text()) | {"format": version}
    (folder / "config.json").write_text(json.dumps(config))
    sidecar = json.loads((folder / "sidecar.json").read_text())
    sidecar["files"]["config.json"] = sha256(folder / "config.json")
    (folder / "sidecar.json").write_text(json.dumps(sidecar))


# -------------------------------------------------------------------------------------------------------------- upload


def test_research_only_data_is_not_uploaded(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("nothing may be uploaded"))
    for sidecar, why in (
        ({"raw": {"source": {"kind": "amazon2014", "name": "Office_Products"}}}, "research use only"),
        ({"raw": {"source": "tiny"}}, "not known which data"),
        ({}, "not known which data"),
    ):
        with pytest.raises(UserError, match=why):
            push_to_hub(packaged, "me/model", source_kind(sidecar))


def test_own_data_is_uploaded_to_a_private_repository(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append(("create", repository, options))

        def repo_info(self, repository: str, **_: Any) -> Any:
            return SimpleNamespace(private=private)

        def upload_folder(self, **options: Any) -> Any:
            calls.append(("upload", options["folder_path"], options))
            return type("Commit", (), {"commit_url": "https://example.org/commit"})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    private = False
    with pytest.raises(UserError, match="me/model is there already and is public"):
        push_to_hub(packaged, "me/model", "files")
    assert [name for name, *_ in calls] == ["create"]
    calls.clear()
    private = True
    assert push_to_hub(packaged, "me/model", "files") == "https://example.org/commit"
    assert [(name, what) for name, what, _ in calls] == [("create", "me/model"), ("upload", packaged)]
    assert calls[0][2]["private"] is True


def test_a_hub_that_refuses_is_one_line(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HFValidationError

    class Hub:
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise HFValidationError("Repo id must be in the form\n'repo_name'")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(UserError, match=r"^a/b/c: not uploaded \(Repo id must be in the form\); see `hf auth login`$"):
        push_to_hub(packaged, "a/b/c", "files")


def test_a_hub_that_cannot_be_reached_is_one_line(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hub's own client, whose errors are no OSError."""
    from huggingface_hub import HfApi

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi("http://127.0.0.1:9", token="none"))
    with pytest.raises(UserError, match=r"^me/model: not uploaded \([^\n]+\); see `hf auth login`$"):
        push_to_hub(packaged, "me/model", "files")


# ----------------------------------------------------------------------------------------------------- every adapter, backbone


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_on_every_backbone_becomes_a_package(
    trained: Path, set_trained: Callable[..., None], adapter: str, backbone: str
) -> None:
    set_trained(adapter=adapter, backbone=backbone)
    recommender = Recommender.load()
    figures = write_package(recommender)
    assert figures["users"] == recommender.users.height
    same_answers(Package(PACKAGE), recommender)


@pytest.fixture
def set_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train another adapter and backbone, one epoch, as the selected run."""
    import yaml

    def train(**names: str) -> None:
        params = yaml.safe_load(Path("params.yaml").read_text()) | names
        params["train"]["epochs"] = 1
        Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        from stages import train as stage

        monkeypatch.setattr(sys, "argv", ["train"])
        stage.main()

    return train
