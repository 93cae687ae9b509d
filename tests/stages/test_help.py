"""`python -m stages.<name> --help` explains every script and starts nothing."""

import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(file.stem for file in (ROOT / "stages").glob("*.py") if file.stem != "__init__")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_a_script_does_and_starts_nothing(tmp_path: Path, name: str) -> None:
    """There is no params.yaml, so a script that starts its work fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "importtime", "-m", f"stages.{name}", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    first_sentence = str(import_module(f"stages.{name}").__doc__).split(":")[0]
    assert " ".join(first_sentence.split()) in " ".join(done.stdout.split())
    assert not list(tmp_path.iterdir())
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "matplotlib"}, "help comes at once"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_mistake_in_the_options_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # no params.yaml
    monkeypatch.setattr(sys, "argv", [f"stages/{name}.py", "--no-such-option"])
    with pytest.raises(SystemExit, match=r"^2$"):
        import_module(f"stages.{name}").main()
    printed = capsys.readouterr().err
    assert re.fullmatch(rf"{name}: .*; `python -m stages\.{name} --help` lists the options\n", printed), printed


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_argument_has_a_help_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_args(parser: ArgumentParser, *_: object) -> NoReturn:
        assert all(action.help for action in parser._actions)
        raise KeyboardInterrupt

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_args)
    with pytest.raises(KeyboardInterrupt):
        import_module(f"stages.{name}").main()


def test_there_are_scripts_to_ask() -> None:
    assert {"validate", "download", "train", "prepare", "compare", "aggregate"} <= set(SCRIPTS)
