"""Scripts, one per stage: each reads parameters, calls `pipeline` and writes artifacts. Run as `python -m stages.<name>`."""

import os
import signal
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

# Before a stage's own imports, because DVC starts the `python` on the path, which may lack the packages.
if missing := [name for name in ("numpy", "polars", "pydantic", "torch", "yaml") if find_spec(name) is None]:
    sys.exit(f"Python package '{missing[0]}' is missing in {sys.executable}; run `make install` and `source .venv/bin/activate`")


def dvc_key() -> str | None:
    """Return the part after @ in the name of the DVC stage that runs this script, e.g. the dataset; None outside DVC.

    Names are passed in this way and not as arguments, because DVC would insert them unquoted into a shell command.
    """
    return os.environ.get("DVC_STAGE", "").partition("@")[2] or None


def add_dataset(parser: ArgumentParser) -> None:
    """Add the argument `dataset`; if DVC runs the script, its default is the dataset of the DVC stage."""
    key = dvc_key()
    parser.add_argument("dataset", nargs="?" if key else None, default=key, help="a section of `sources:` in params.yaml")


def add_cell(parser: ArgumentParser, optional: bool = False) -> None:
    """Add the arguments `dataset`, `backbone` and `adapter`; optional: they may be left out."""
    for name, section in {"dataset": "sources", "backbone": "backbones", "adapter": "adapters"}.items():
        parser.add_argument(name, nargs="?" if optional else None, help=f"a section of `{section}:` in params.yaml")


def check_checkpoint(directory: Path) -> None:
    """Raise UserError if `--checkpoint` names a folder without one, other than the folder that the selected run fills."""
    from common.errors import UserError
    from pipeline.artifacts import SIDECAR
    from pipeline.runs import CHECKPOINT

    if directory != CHECKPOINT and not (directory / SIDECAR).is_file():
        raise UserError(
            f"--checkpoint {directory}: there is no checkpoint in that folder; name that of a trained run, such as {CHECKPOINT}"
        )


def run(main: Callable[[], str | None]) -> None:
    """Run a stage and print the summary that `main` returns.

    If `main` raises an error that `explained` knows, print one line and exit with status 1; other errors are bugs. SIGTERM ends a
    stage as Ctrl-C does, and with it the processes that it started. With several processes, only the first returns a summary; the
    others return None.
    """
    from common.secrets import masked

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    stage = main.__module__ if main.__module__ != "__main__" else sys.argv[0].rsplit("/", 1)[-1].removesuffix(".py")
    try:
        summary = main()
        if summary is not None:
            print(masked(f"{stage}: {summary}"))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if line := explained(error):
            sys.exit(masked(f"{stage}: {line}"))
        sys.exit(masked(traceback.format_exc()))


def explained(error: Exception) -> str | None:
    """Return one line for an error that the user can fix; None for a bug."""
    from common.disk import no_room
    from common.errors import UserError
    from common.memory import out_of_memory

    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        return (
            "out of memory; lower train.batch_size, or while embedding the encoder's batch_tokens, in params.yaml; "
            "run fewer jobs at a time; or take a machine with more (docs/scale.md says how much a catalogue needs)"
        )
    where = getattr(error, "filename", None)
    if reason := no_room(error):
        return f"{where or 'the disk'}: {reason}; free disk space there, then run the same command again: finished work is kept"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{where or 'input/output'}: {error.strerror}; check permissions and free disk space"
    return None
