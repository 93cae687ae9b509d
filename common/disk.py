"""Errors of a full disk, whichever library raised them."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How libraries say so that raise no OSError with an errno: polars, safetensors, NumPy.
SAYS_FULL = re.compile(r"No space left on device|os error (28|122|27)\b|requested and \d+ written")
PROBE = 1 << 16  # bytes


def no_room(error: BaseException) -> str | None:
    """Why nothing more can be written, if `error` says so, whichever library raised it; else None."""
    number = getattr(error, "errno", None)
    if number not in FULL:
        if not SAYS_FULL.search(str(error)):
            return None
        number = errno.ENOSPC
    return os.strerror(number)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Name `path` in the error of a full disk. Raises OSError with errno ENOSPC.

    torch does not say why it cannot write: for an error that says nothing, it is tried whether the disk takes a few bytes more.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if reason := no_room(error) or _full(path.parent):
            raise OSError(errno.ENOSPC, reason, str(path)) from error
        raise


def _full(folder: Path) -> str | None:
    """Why a file in `folder` cannot take PROBE bytes, where the disk is full."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
            file.flush()
    except OSError as error:
        return no_room(error)
    return None
