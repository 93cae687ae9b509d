"""Changes of a params.yaml."""

import copy
from pathlib import Path
from typing import Any

import yaml


def change_params(file: Path, values: dict[str, Any]) -> None:
    """Write values into the file: `{"train.epochs": 1}`."""
    params = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, value in values.items():
        section = params
        *path, last = name.split(".")
        for part in path:
            section = section[part]
        section[last] = copy.deepcopy(value)
    file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
