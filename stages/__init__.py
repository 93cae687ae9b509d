"""Thin scripts, one per stage: read parameters, call `pipeline`, write artifacts. Run as `python -m stages.<name>`."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from importlib.util import find_spec

# Before a stage's own imports: DVC starts whatever `python` is on the path, and that may be one without the packages.
if missing := [name for name in ("numpy", "polars", "pydantic", "torch", "yaml") if find_spec(name) is None]:
    sys.exit(f"Python package '{missing[0]}' is missing in {sys.executable}; `make install`, then `source .venv/bin/activate`")


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
    from common.errors import UserError

    stage = main.__module__ if main.__module__ != "__main__" else sys.argv[0].rsplit("/", 1)[-1].removesuffix(".py")
    try:
        summary = main()
        if summary is not None:
            print(f"{stage}: {summary}")
    except UserError as error:
        sys.exit(f"{stage}: {error}")
    except OSError as error:
        if error.errno is None:
            raise
        sys.exit(f"{stage}: {error.filename or 'input/output'}: {error.strerror}; check permissions and free disk space")
    except KeyboardInterrupt:
        sys.exit(130)
