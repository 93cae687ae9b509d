"""What a killed DVC leaves behind stops no later one."""

import fcntl
import subprocess
import threading
from pathlib import Path

from common import dvc_lock


def test_the_cure_for_dvcs_lock_cures_and_harms_no_dvc_at_work(project: Path) -> None:
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], check=True)
    (project / "dvc.yaml").write_text("stages: {one: {cmd: touch one, outs: [one]}}\n")
    dvc_lock.RWLOCK.parent.mkdir(exist_ok=True)
    dvc_lock.RWLOCK.write_text("")
    stopped = subprocess.run(["dvc", "repro"], capture_output=True, text=True, check=False)
    assert stopped.returncode != 0
    assert "JSON structure is corrupted" in stopped.stderr
    with dvc_lock.RWLOCK.with_suffix(".lock").open("w") as held:  # by a DVC that is about to write its list
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=dvc_lock.mend_dvc_lock)
        waiting.start()
        dvc_lock.RWLOCK.write_text("{}")
    waiting.join()
    assert dvc_lock.RWLOCK.read_text() == "{}"
    dvc_lock.RWLOCK.write_text("")
    assert dvc_lock.mend_dvc_lock()
    assert not dvc_lock.mend_dvc_lock()
    subprocess.run(["dvc", "repro", "--quiet"], check=True)
