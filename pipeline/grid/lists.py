"""The lists of a grid in a file of their own: grid/paper.yaml, and docs/results/<name>/grid.yaml of published results."""

import re
from pathlib import Path

import yaml

from common.errors import UserError
from pipeline.artifacts import atomic_file
from pipeline.params import PARAMS_FILE, Params, Preprocess, parse_yaml, read_yaml


def choose_grid(lists: Path, path: Path = PARAMS_FILE) -> None:
    """Replace the `grid:` section of `path` by that of `lists`; all other lines stay unchanged.

    `lists` may say what else its grid needs, as published results do: `encoder` and `preprocess`. Raises UserError, and leaves
    `path` unchanged, if the result would be invalid, if either file has no such section, or if `path` has other values of these.
    """
    values, chosen = read_yaml(path), read_yaml(lists)
    Params.parse(values | {"grid": chosen.get("grid")}, str(lists))
    for name in ("encoder", "preprocess"):
        needed, today = chosen.get(name), values.get(name)
        if isinstance(needed, dict) and isinstance(today, dict):
            # Results from before an option of preprocessing existed were built with its default.
            needed, today = (Preprocess.parse(section, str(path)).model_dump() for section in (needed, today))
            pairs = [(f"{name}.{option}", value, today[option]) for option, value in needed.items()]
        else:
            pairs = [(name, needed, today)] if needed is not None else []
        for option, then, now in pairs:
            if then != now:
                raise UserError(f"{lists} is for {option} {then}, {path} {now}; change {path} first, or work in another clone")
    # Up to the next section and the comments right above it.
    section = re.compile(r"^grid:.*\n(?:.*\n)*?(?=(?:#.*\n|[ \t]*\n)*(?:[^\s#-]|\Z))", re.MULTILINE)
    new = section.search(lists.read_text(encoding="utf-8").rstrip() + "\n")
    text = path.read_text(encoding="utf-8").rstrip() + "\n"
    if new is None or len(section.findall(text)) != 1:
        raise UserError(f"{path if new else lists} has no section `grid:` at the start of a line")
    replaced = section.sub(lambda _: new[0], text)
    try:
        same = parse_yaml(replaced) == values | {"grid": chosen["grid"]}
    except yaml.YAMLError:  # an alias of something outside the section, for example
        same = False
    if not same:
        raise UserError(f"the section `grid:` of {lists} cannot be put into {path}; copy it by hand")
    with atomic_file(path) as partial:
        partial.write_text(replaced, encoding="utf-8")
