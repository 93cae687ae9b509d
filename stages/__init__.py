"""Thin scripts, one per stage: read parameters, call `pipeline`, write artifacts. Run as `python -m stages.<name>`."""

import sys
from collections.abc import Callable


def run(main: Callable[[], str]) -> None:
    """Run a stage: print the summary that `main` returns, or the one line of what a user can mend, and exit."""
    stage = main.__module__ if main.__module__ != "__main__" else sys.argv[0].rsplit("/", 1)[-1].removesuffix(".py")
    try:
        try:
            from models.errors import UserError
        except ModuleNotFoundError as error:
            sys.exit(f"{stage}: Python package '{error.name}' is missing; `make install`, then `source .venv/bin/activate`")
        try:
            print(f"{stage}: {main()}")
        except UserError as error:
            sys.exit(f"{stage}: {error}")
        except OSError as error:
            if error.errno is None:
                raise
            sys.exit(f"{stage}: {error.filename or 'input/output'}: {error.strerror}; check permissions and free disk space")
        except ModuleNotFoundError as error:
            sys.exit(f"{stage}: Python package '{error.name}' is missing; `make install`, then `source .venv/bin/activate`")
    except KeyboardInterrupt:
        sys.exit(130)
