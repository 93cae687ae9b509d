"""A copy of this repository that is small enough to run in seconds, and the commands that a user types there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


class Project:
    """A checkout with the real `git`, `dvc` and `make`."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.root = root
        self.printed = ""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        for name in ("SPECTRAN_SCRATCH", "PYTEST_XDIST_WORKER"):  # a pytest in the clone is no worker of the one outside
            self.environment.pop(name, None)
        self.environment |= environment

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command; return its stdout and stderr."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert (done.returncode != 0) == fails, f"{command} exited with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "--allow-empty", "-m", "state")

    def ran(self, output: str) -> list[str]:
        """Return the names of the stages whose commands ran, e.g. `embed@demo`, in order."""
        return [name.rpartition(":")[2] for name in re.findall(r"^Running stage '([^']+)'", output, flags=re.MULTILINE)]

    def listing(self, artifact: str) -> str:
        """Return the object, in a cache or remote, that lists a directory's files."""
        stages = yaml.safe_load((self.root / "data/dvc.lock").read_text())["stages"].values()
        (md5,) = (out["md5"] for stage in stages for out in stage["outs"] if out["path"] == artifact)
        return f"files/md5/{md5[:2]}/{md5[2:]}"

    def metrics(self) -> dict:
        return json.loads((self.root / "metrics/evaluation.json").read_text())


def copy_repository(root: Path) -> dict[str, Any]:
    """Copy the repository without tests and lock files to `root`; return small parameters to write there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    for lock in root.rglob("dvc.lock"):
        lock.unlink()
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["sources"]["demo"] |= {"items": 120, "users": 150}
    params["train"]["epochs"] = 2
    params |= {"dataset": "demo", "adapter": "base", "backbone": "sasrec", "encoder": "minilm", "dim": 16, "seed": 0}
    params["grid"] |= {
        "dim": 16,
        "datasets": ["demo"],
        "backbones": ["sasrec"],
        "adapters": ["base", "spectran"],
        "seeds": [0, 1],
    }
    return params


def write_params(root: Path, params: dict[str, Any]) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
