"""DVC's remotes: no secret in the configuration that git tracks, and whether a remote answers."""

import subprocess
import sys
from pathlib import Path

from configobj import ConfigObj, ConfigObjError

from common.errors import UserError
from common.secrets import SECRET, has_secret, masked

CONFIG = Path(".dvc/config")
NO_SECRET = {"ask_password", "ask_passphrase"}  # they say that DVC asks
SECONDS = 20


def refuse_secrets(config: Path = CONFIG) -> None:
    """Raise UserError for a password, key or token in DVC's tracked configuration; the line does not repeat it."""
    for section, options in _sections(config):
        for option, value in options.items():
            place = f"{config}: [{section}] {option}"
            cure = "remove it, put it in with `dvc remote modify --local`, and replace it: what git has seen is no secret"
            if SECRET.search(option) and option not in NO_SECRET:
                raise UserError(f"{place} is a secret in a file that git tracks; {cure}")
            if has_secret(str(value)):
                raise UserError(f"{place} has a secret in its URL, in a file that git tracks; {cure}")


def _sections(config: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        return list(ConfigObj(str(config), list_values=False, interpolation=False).items())
    except ConfigObjError as error:
        raise UserError(f"{config} is no DVC configuration: {error}") from None


def why_unreachable(name: str) -> str:
    """Return DVC's reason, without secrets, why the remote is unreachable; "" if it answers.

    DVC itself asks, so that credentials, endpoints and keys are those of a push.
    """
    command = [sys.executable, "-m", "dvc", "list-url", f"remote://{name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s"
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    if done.returncode == 0:
        return ""
    return masked((lines or ["ERROR: no reason given"])[0].removeprefix("ERROR: "))
