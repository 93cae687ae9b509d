"""`python -m stages.package` and `python -m stages.serve`: what a user may get wrong is one line."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from pipeline.artifacts import atomic_directory
from pipeline.serving.package import PACKAGE
from stages import package, serve

pytestmark = pytest.mark.xdist_group("serving")


def typed(stage: object, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [str(stage), *arguments])
    return stage.main()  # type: ignore[attr-defined]


def test_without_a_checkpoint_nothing_is_packaged(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"data/checkpoints/selected/sidecar.json is missing; it is made by `dvc repro train`"):
        typed(package, monkeypatch)
    assert not PACKAGE.exists()


def test_the_stage_says_where_the_package_lies_and_how_it_was_compared(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.serving.package.write_package", lambda *_, **__: {"users": 1234, "states": 2e-7, "scores": 0.0})
    said = typed(package, monkeypatch)
    assert said.startswith("tiny-sasrec-spectran dim 16 seed 0 in data/packages/selected; the ten best items of 1,234 users")
    with pytest.raises(UserError, match="is not uploaded: it is not known which data it was made from"):
        typed(package, monkeypatch, "--push-to-hub", "me/model")


def test_a_package_that_dvc_does_not_know_is_said(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise `dvc push` would share the one before."""
    monkeypatch.setattr("pipeline.serving.package.write_package", lambda *_, **__: {"users": 1, "states": 0.0, "scores": 0.0})
    typed(package, monkeypatch)
    assert capsys.readouterr().err == ""
    selected = Path("data/checkpoints/selected")
    with atomic_directory(Path("data/checkpoints/other"), {"run": "other"}) as folder:
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(selected / name, folder / name)
    typed(package, monkeypatch, "--checkpoint", "data/checkpoints/other")
    assert "`dvc push` shares it only after `dvc commit -f serving/dvc.yaml:package`" in capsys.readouterr().err


def test_a_package_of_the_selected_run_is_served_by_default(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^data/packages/selected is no package; `python -m stages.package` makes one$"):
        typed(serve, monkeypatch)
    PACKAGE.mkdir(parents=True)
    (PACKAGE / "sidecar.json").write_text(json.dumps({"files": {}}))
    with pytest.raises(UserError, match=r"data/packages/selected is no package; `python -m stages.package` makes one"):
        typed(serve, monkeypatch)


@pytest.mark.parametrize("name", ["fastapi", "onnxruntime", "uvicorn"])
def test_a_missing_python_package_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda found: None if found == name else object())
    with pytest.raises(UserError, match=rf"^Python package '{name}' is missing; `pip install '\.\[serve\]'`$"):
        typed(serve, monkeypatch)


def test_the_package_stage_names_its_extra_too(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.serving.package.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"`pip install '\.\[package\]'`"):
        typed(package, monkeypatch)


def test_a_port_that_no_machine_has_is_refused_by_the_stage_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        typed(serve, monkeypatch, "--port", "70000")
    printed = capsys.readouterr().err
    assert "'70000' is no port" in printed
    assert len(printed.splitlines()) == 1
