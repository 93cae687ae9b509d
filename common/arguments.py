"""The options of a command."""

from argparse import ArgumentParser
from pathlib import Path
from typing import NoReturn


class Arguments(ArgumentParser):
    """A parser of options that says a mistake in one line, as all commands do, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and where the options are listed; exit with status 2, as argparse does."""
        name = Path(self.prog).stem
        self.exit(2, f"{name}: {message}; `python -m stages.{name} --help` lists the options\n")
