"""DVC's list of who is at work, which a killed DVC may leave incomplete."""

import fcntl
import json
from pathlib import Path

RWLOCK = Path(".dvc/tmp/rwlock")  # DVC's list of who reads and writes what


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
