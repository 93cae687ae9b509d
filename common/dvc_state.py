"""What DVC has on disk: its list of who is at work, which a kill may leave incomplete, its lock files, and its remote."""

import fcntl
import json
import re
from pathlib import Path

from common.errors import UserError
from common.secrets import masked

RWLOCK = Path(".dvc/tmp/rwlock")  # DVC's list of who reads and writes what
LOCK_FILES = tuple(Path(folder) / "dvc.lock" for folder in ("", "data", "grid", "serving"))


def broken_dvc_lock() -> str | None:
    """Return one line if a killed DVC left its list incomplete, which stops every later DVC, and how to fix that; else None."""
    try:
        if isinstance(json.loads(RWLOCK.read_text(encoding="utf-8")), dict):
            return None
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    return f"{RWLOCK} was left incomplete by a DVC that was killed; if no other DVC is at work, `rm {RWLOCK}` fixes it"


def conflicted_lock_file() -> str | None:
    """Return one line if a merge left marks of a conflict in a lock file, which stops DVC, and how to fix that; else None."""
    for file in LOCK_FILES:
        if file.is_file() and re.search(r"^<{7} ", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
            undo = "`git merge --abort` or `git rebase --abort` undoes it"
            return f"{file} has the marks of a conflict; {undo} (docs/teamwork.md, 'Two push at once')"
    return None


def mend_dvc_lock() -> bool:
    """Remove DVC's list where a kill left it incomplete, as long as no DVC is writing it; return whether it was removed.

    The list only says who is at work at the moment. DVC starts a new one.
    """
    if broken_dvc_lock() is None:
        return False
    with RWLOCK.with_suffix(".lock").open("a") as guard:  # which DVC locks while it writes the list
        fcntl.flock(guard, fcntl.LOCK_EX)
        if broken_dvc_lock() is None:
            return False
        RWLOCK.unlink()
        return True


def default_remote() -> tuple[str, str] | None:
    """Name and URL of the remote that `dvc push` and `dvc pull` use, from all of DVC's configuration; None without one.

    Raises UserError if DVC cannot read its configuration.
    """
    from dvc.config import Config, ConfigError

    try:
        config = Config(".dvc")
    except ConfigError as error:
        raise UserError(f"DVC's configuration: {masked(' '.join(str(error).split()))}") from None
    name = config["core"].get("remote")
    return (name, config["remote"][name]["url"]) if name in config["remote"] else None


def has_remote() -> bool:
    """Return whether there is a default remote; False too if DVC cannot read its configuration, for use in another error."""
    try:
        return default_remote() is not None
    except UserError:
        return False
