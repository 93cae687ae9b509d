"""Check the names that select a run, before anything is spent on it: `python -m stages.select`."""

from pipeline.artifacts import RUNS, write_json
from pipeline.params import load_params
from stages import run


def main() -> str:
    params = load_params()
    names = {name: getattr(params, name) for name in ("dataset", "encoder", "backbone", "adapter", "dim", "seed")}
    write_json(RUNS / "selected.json", names)
    return ", ".join(f"{name} {value}" for name, value in names.items())


if __name__ == "__main__":
    run(main)
