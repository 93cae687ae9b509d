"""Check params.yaml before any other stage runs: `python -m stages.validate`.

Every other stage depends on the file that this one writes, so DVC builds no path from a name that was not checked. The file
always has the same content, so only a failed check affects the other stages.
"""

from argparse import ArgumentParser
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.params import load_params
from stages import run

VALIDATED = Path("data/validated.json")


def main() -> str:
    ArgumentParser(description=__doc__).parse_args()
    params = load_params()
    write_json(VALIDATED, {"params.yaml": "valid"})
    names = ("dataset", "encoder", "backbone", "adapter", "dim", "seed")
    return ", ".join(f"{name} {getattr(params, name)}" for name in names)


if __name__ == "__main__":
    run(main)
