"""DVC's cache on a disk that is full: `dvc repro` says so, and goes on from there once there is room."""

import subprocess
from pathlib import Path

import pytest

from tests.clone import Project, copy_repository, write_params
from tests.faults.bench import tree
from tests.faults.kills import disk, may_mount

STAGE = "data/dvc.yaml:preprocess@demo"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("dvc")]


def project(root: Path) -> Project:
    write_params(root, copy_repository(root))
    made = Project(root)
    made.run("git", "init", "-q")
    return made


def result(root: Path) -> dict[str, str]:
    return {name: checksum for name, checksum in tree(root / "data").items() if not name.startswith("runs")}


def test_a_full_cache_is_told_and_later_runs_go_on(tmp_path: Path) -> None:
    if not may_mount(tmp_path / "disk"):
        pytest.skip("no right to mount a disk of a few kB")
    disturbed, other = project(tmp_path / "disturbed"), project(tmp_path / "other")
    refused = 0
    with disk(disturbed.root / ".dvc/cache") as mount:
        for size in range(8, 300, 40):
            mount(f"size={size}k")
            command = ["dvc", "repro", STAGE]
            done = subprocess.run(
                command, cwd=disturbed.root, env=disturbed.environment, capture_output=True, text=True, check=False
            )
            assert "Traceback" not in done.stdout + done.stderr
            if done.returncode == 0:
                break
            refused += 1
            assert "No space left on device" in done.stderr
        assert done.returncode == 0
        assert refused >= 2
        assert "didn't change" in disturbed.run("dvc", "repro", STAGE)
        disturbed.run("dvc", "checkout", "--force", STAGE)
        other.run("dvc", "repro", STAGE)
        assert result(disturbed.root) == result(other.root)
        for lock in ("dvc.lock", "data/dvc.lock"):
            assert (disturbed.root / lock).read_bytes() == (other.root / lock).read_bytes()
