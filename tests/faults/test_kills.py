"""Stages that are killed or meet a full disk, and run again, leave what they leave undisturbed. A sample of `make faults`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "options",
    [
        ["--until", "preprocess", "--writes", "0.1", "--full", "0.1", "--random", "2", "--disks", "--others", "1"],
        pytest.param(
            ["--writes", "0.04", "--full", "0.04", "--random", "20", "--disks", "0.3", "--others", "1"], marks=pytest.mark.slow
        ),
    ],
    ids=["data", "all stages"],
)
def test_a_stage_that_is_cut_off_and_run_again_leaves_what_it_leaves_undisturbed(options: list[str]) -> None:
    """In a process of its own, which forks: pytest's has threads."""
    command = [sys.executable, "-m", "tests.faults.kills", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"^(\d+) faults: lost 0", done.stdout, re.MULTILINE)[0]) >= 10


@pytest.mark.slow
def test_what_a_killed_stage_leaves_over_is_found() -> None:
    """The same trials, where nothing removes what a killed process was writing."""
    broken = "from pipeline import artifacts; artifacts._remove_abandoned = lambda partial: None"
    program = f"{broken}; from tests.faults import kills; kills.main()"
    options = ["--until", "validate", "--writes", "0.1", "--random", "0", "--full", "0", "--disks"]
    command = [sys.executable, "-c", program, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^FAULT validate killed before write \d+: half-written and left: ", done.stdout, re.MULTILINE)
    assert re.fullmatch(r"\d+ of \d+ trials failed: see FAULT above\n", done.stderr)
