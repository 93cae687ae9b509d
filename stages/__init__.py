"""Thin scripts, one per stage: read parameters, call `pipeline`, write artifacts. Run as `python -m stages.<name>`."""

import os
import re
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable
from importlib.util import find_spec

# Before a stage's own imports: DVC starts whatever `python` is on the path, and that may be one without the packages.
if missing := [name for name in ("numpy", "polars", "pydantic", "torch", "yaml") if find_spec(name) is None]:
    sys.exit(f"Python package '{missing[0]}' is missing in {sys.executable}; `make install`, then `source .venv/bin/activate`")


# How torch, on CPU and GPU, and its dependents say that memory is out; all raise RuntimeError or a subclass of it.
OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|can't allocate memory|CUDA out of memory|^ArrayMemoryError|std::bad_alloc")


def dvc_key() -> str | None:
    """Return what follows the @ in the name of the DVC stage that runs this script, e.g. the dataset; None outside DVC.

    Names come this way, not as arguments, because DVC would put them into a shell command as they are.
    """
    return os.environ.get("DVC_STAGE", "").partition("@")[2] or None


def add_dataset(parser: ArgumentParser) -> None:
    """Add the argument `dataset`, which DVC's stage gives where DVC runs the script."""
    key = dvc_key()
    parser.add_argument("dataset", nargs="?" if key else None, default=key, help="a section of `sources:` in params.yaml")


def run(main: Callable[[], str | None]) -> None:
    """Run a stage: print the summary that `main` returns (all but one process of several have none), or the one line of what a
    user can mend, and exit.
    """
    from common.secrets import masked

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
    """Return the one line for what a user can mend; None for a fault of the program."""
    from common.errors import UserError
    from pipeline.artifacts import no_room

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
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
