"""docs/serving.md as a script: its transcripts are typed, and what they print is compared with what the page shows."""

import http.client
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest

from benchmarks.serving import free_port
from tests.clone import ROOT, Project, copy_repository, write_params
from tests.guide import Step, check, sections

PAGE = ROOT / "docs/serving.md"


@pytest.mark.slow
@pytest.mark.xdist_group("serving")
def test_every_transcript_prints_what_the_page_shows(tmp_path: Path) -> None:
    root = tmp_path / "ada/spectran"
    write_params(root, copy_repository(root))
    ada = Project(root)
    ada.run("git", "init", "--quiet", "--initial-branch=main")
    ada.run("git", "config", "user.name", "ada")
    ada.run("git", "config", "user.email", "ada@example.org")
    ada.run("dvc", "remote", "add", "--quiet", "--default", "team", str(tmp_path / "remote"))
    ada.commit()
    ben = Project(tmp_path)
    port = free_port()
    server = None
    try:
        for step in [step for steps in sections(PAGE).values() for step in steps]:
            who = {"ada": ada, "ben": ben}[step.who]
            if step.command == "python -m stages.serve":
                server = start(who, step, port)
            else:
                check(step, who.run("bash", "-c", step.command.replace("localhost:8000", f"localhost:{port}")))
    finally:
        if server:
            server.terminate()
            server.wait()
    answers = pl.read_parquet(root / "answers.parquet")
    assert answers["user_id"].unique(maintain_order=True).to_list() == ["user00001", "user00002"]
    python_examples_run(ada)


def start(who: Project, step: Step, port: int) -> subprocess.Popen[str]:
    """Start the server, on a port that is free here, and wait for its first line."""
    command = ["python", "-u", *step.command.split()[1:], "--port", str(port)]
    server = subprocess.Popen(command, cwd=who.root, env=who.environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    check(step, server.stdout.readline())
    for _ in range(100):
        with suppress(OSError):
            http.client.HTTPConnection("127.0.0.1", port, timeout=1).request("GET", "/health")
            return server
        time.sleep(0.1)
    raise AssertionError("the server does not answer")


def python_examples_run(ada: Project) -> None:
    for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        printed = ada.run("python", "-c", f"{example}\nprint(table.columns)")
        assert "['request', 'rank', 'item_id', 'title', 'score', 'source']" in printed


def test_the_limits_that_the_page_names_are_the_servers() -> None:
    from pipeline.serving import package, server

    text = PAGE.read_text(encoding="utf-8")
    for shown in (
        f"| {server.HISTORY:,} item ids, oldest first |",
        f"| 1 to {server.K} |",
        f"| {server.LISTED:,} item ids |",
        f"bodies above {server.BODY >> 20} MiB",
        f"up to {package.PARITY_USERS:,} users",
        f"within {package.TOLERANCE:.0e}".replace("e-04", "e-4"),
        f"within {package.TIED:.0e} of each other".replace("e-06", "e-6"),
    ):
        assert shown in text, shown
