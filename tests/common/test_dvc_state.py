"""What a killed DVC leaves behind stops no later one; the marks of a merge in a lock file are named."""

import fcntl
import subprocess
import threading
from pathlib import Path

import pytest

from common import dvc_state
from common.errors import UserError


def test_the_cure_for_dvcs_lock_cures_and_harms_no_dvc_at_work(project: Path) -> None:
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], check=True)
    (project / "dvc.yaml").write_text("stages: {one: {cmd: touch one, outs: [one]}}\n")
    dvc_state.RWLOCK.parent.mkdir(exist_ok=True)
    dvc_state.RWLOCK.write_text("")
    stopped = subprocess.run(["dvc", "repro"], capture_output=True, text=True, check=False)
    assert stopped.returncode != 0
    assert "JSON structure is corrupted" in stopped.stderr
    with dvc_state.RWLOCK.with_suffix(".lock").open("w") as held:  # by a DVC that is about to write its list
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=dvc_state.mend_dvc_lock)
        waiting.start()
        dvc_state.RWLOCK.write_text("{}")
    waiting.join()
    assert dvc_state.RWLOCK.read_text() == "{}"
    dvc_state.RWLOCK.write_text("")
    assert dvc_state.mend_dvc_lock()
    assert not dvc_state.mend_dvc_lock()
    subprocess.run(["dvc", "repro", "--quiet"], check=True)


def test_the_marks_of_a_merge_are_found_in_every_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dvc_state.conflicted_lock_file() is None
    for file in dvc_state.LOCK_FILES:
        file.parent.mkdir(exist_ok=True)
        file.write_text("stages:\n  train:\n    cmd: 'cat <<<<<<< x'\n")
        assert dvc_state.conflicted_lock_file() is None
        file.write_text("stages:\n<<<<<<< HEAD\n  train:\n=======\n>>>>>>> theirs\n")
        assert str(dvc_state.conflicted_lock_file()).startswith(f"{file} has the marks of a conflict; `git merge --abort`")
        file.unlink()


def test_a_remote_that_git_does_not_know_is_one_line_and_no_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a change of branch: `.dvc/config.local` has a user for a remote that `.dvc/config` lacks."""
    monkeypatch.chdir(tmp_path)
    assert dvc_state.default_remote() is None
    assert not dvc_state.has_remote()
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], check=True)
    subprocess.run(["dvc", "remote", "add", "-q", "-d", "team", str(tmp_path / "team")], check=True)
    assert dvc_state.default_remote() == ("team", str(tmp_path / "team"))
    assert dvc_state.has_remote()
    Path(".dvc/config").write_text("")
    Path(".dvc/config.local").write_text("['remote \"team\"']\n    user = ada\n")
    assert not dvc_state.has_remote()
    with pytest.raises(UserError, match=r"^DVC's configuration: "):
        dvc_state.default_remote()
