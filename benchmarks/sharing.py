"""Time from a fresh clone with a filled remote to the first comparison of a new dim: seconds per command, and of training.

`python -m benchmarks.sharing office --mirror FOLDER`: in temporary folders, one member embeds, trains with dim 128 and pushes;
another clones, trains with dim 64 and compares. Only the second member is timed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def call(folder: Path, *command: str) -> tuple[str, float]:
    """Run a command; return its output and its seconds. Exits if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout, time.perf_counter() - start


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--mirror", default="null", help="folder or URL with the source's files; default: the official site")
    arguments = parser.parse_args()
    chosen = ("-S", f"dataset={arguments.dataset}", "-S", f"download.mirror={arguments.mirror}", "-S", "adapter=spectran")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        origin, first, second = base / "origin.git", base / "first", base / "second"
        call(base, "git", "clone", "--quiet", "--bare", str(ROOT), str(origin))
        call(base, "git", "clone", "--quiet", str(origin), str(first))
        author = ("git", "-c", "user.name=first", "-c", "user.email=first@example.org", "commit", "--quiet", "--all", "--message")
        for command in (
            ("dvc", "remote", "add", "--default", "team", str(base / "remote")),
            (*author, "A remote"),
            ("dvc", "exp", "run", "evaluate", *chosen, "-S", "dim=128"),
            (*author, "128 dimensions"),
            ("dvc", "push", "--run-cache"),
            ("git", "push", "--quiet"),
        ):
            call(first, *command)
        steps = {"git clone": call(base, "git", "clone", "--quiet", str(origin), str(second))[1]}
        ran, steps["dvc exp run"] = call(second, "dvc", "exp", "run", "evaluate", "--pull", "--allow-missing", "-S", "dim=64")
        compared, steps["dvc metrics diff"] = call(second, "dvc", "metrics", "diff")
        (record,) = (second / ".scratch/runs").glob("*/run.json")
        training = json.loads(record.read_text())["seconds"]
        stages = re.findall(r"^Running stage '([^']+)'", ran, flags=re.MULTILINE)
    print(compared)
    print(", ".join(f"{step} {seconds:.1f} s" for step, seconds in steps.items()))
    total = sum(steps.values())
    print(f"total {total:.1f} s, training {training:.1f} s, the rest {total - training:.1f} s; stages: {', '.join(stages)}")


if __name__ == "__main__":
    main()
