"""A full disk is recognised whichever library reports it; other errors stay what they are."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from common import disk
from common.disk import no_room, room_for
from common.errors import UserError


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (OSError(errno.EFBIG, "File too large"), errno.EFBIG),
        (OSError("4096 requested and 0 written"), errno.ENOSPC),
        (RuntimeError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
    ],
)
def test_a_full_disk_is_recognised(error: Exception, number: int) -> None:
    assert no_room(error) == os.strerror(number)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("x"), KeyError("os error 2")])
def test_another_error_is_no_full_disk(error: Exception, tmp_path: Path) -> None:
    assert no_room(error) is None
    with pytest.raises(type(error)) as caught, room_for(tmp_path / "file"):
        raise error
    assert caught.value is error


def test_the_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, room_for(tmp_path / "file"):
        raise RuntimeError("No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^No space left on device$"), room_for(tmp_path / "file"):
        raise UserError("No space left on device")


def test_a_library_that_does_not_say_why_is_asked_no_further_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="unexpected pos 64"), room_for(tmp_path / "file"):
        raise RuntimeError("unexpected pos 64 vs 0")
    assert list(tmp_path.iterdir()) == [], "the probe is gone"

    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left on device") as caught, room_for(tmp_path / "file"):
        raise RuntimeError("unexpected pos 64 vs 0")
    assert caught.value.errno == errno.ENOSPC
