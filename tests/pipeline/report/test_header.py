"""What a report is of: data, encoder, dim, seeds, and the commit of the code."""

import subprocess
from pathlib import Path

import pytest

from pipeline.report.header import about, code_version
from tests.pipeline.report.values import report_rows


@pytest.mark.usefixtures("project")
def test_the_header_names_data_encoder_dim_and_runs() -> None:
    found = dict(about(report_rows({("tiny", "sasrec", name): [0.1, 0.2] for name in ("base", "spectran")})))
    assert found["Data"].startswith("Tiny, 150 users, ")
    assert (found["Encoder"], found["Dim"], found["Runs"]) == ("random", "16", "2 seeds of 2 adapters")


def test_the_code_is_the_last_commit_that_changed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_version() == "", "outside git, nothing is said"
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2020-02-02T12:00:00Z")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2020-02-02T12:00:00Z")
    git("init", "--quiet")
    for name in ("pipeline/code.py", "metrics/report.html"):
        Path(name).parent.mkdir()
        Path(name).write_text("1\n")
        git("add", name)
        git("commit", "--quiet", "-m", name)
    code = git("rev-parse", "--short=7", "HEAD~1")
    assert code_version() == f"commit {code}, 2020-02-02", "a commit of results does not change it"
    Path("pipeline/code.py").write_text("2\n")
    assert code_version() == f"commit {code}, 2020-02-02, with uncommitted changes"


def test_without_the_program_git_nothing_is_said_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == ""


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()
