"""The comparison of the selected run with the grid's cells, the paper's row and the last commit's run, in metrics/selected.md."""

import hashlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from common.errors import UserError
from common.words import plural
from pipeline.artifacts import atomic_file, read_json, read_signed, sha256
from pipeline.grid.cells import KEYS, listed_cells, read_cells
from pipeline.params import Evaluate, Params
from pipeline.report.formats import markdown_lines, plain_lines
from pipeline.report.paper import paper_table
from pipeline.report.titles import pair_title
from pipeline.runs import CHOICE, EVALUATED, EVALUATION, Run, sequences_directory
from pipeline.training.metrics import metric_names

SELECTED = Path("metrics/selected.md")
EVALUATE = "`python -m stages.evaluate`"


def write_comparison(params: Params) -> str:
    """Write metrics/selected.md; return its path, the cells that were left out, and its content as plain text.

    The text has a further row, the selected run of the last commit. The file has none, since the next commit would outdate it.
    Cells of other settings or data than those here are left out. Raises UserError if the test metrics are missing, damaged,
    incomplete, or belong to another run than the selected one.
    """
    metrics = selected_metrics(params)
    names = metric_names(params.evaluate.cutoffs)
    require_metrics(names, metrics, str(EVALUATION), EVALUATE)
    cells = [cell for cell in listed_cells(params.grid) if cell.over == "seeds" and cell.exists]
    current = [cell for cell in cells if not cell.differs(params)]
    run = {name: str(getattr(params, name)) for name in CHOICE}
    rows = read_cells(current) if current else None
    lines = selected_lines(metrics, run, rows, names)
    with atomic_file(SELECTED) as partial:
        partial.write_text(f"## {heading(run)}\n\n{markdown_lines(lines)}\n", encoding="utf-8")
    left_out = ", ".join(cell.name for cell in cells if cell not in current)
    summary = f"{SELECTED}{f'; left out, built with other settings or data: {left_out}' if left_out else ''}"
    printed = selected_lines(metrics, run, rows, names, committed_run(run, params.evaluate))
    return f"{summary}\n\n{heading(run)}\n\n{plain_lines(printed)}"


def committed_run(run: dict[str, str], evaluate: Evaluate) -> tuple[str, dict[str, float]] | None:
    """Return the label and the test metrics of the selected run of the last commit, with which `dvc metrics diff` compares too.

    run: the choice of the current run, by name. None if git or the commit has no such metrics; if dvc.lock of the commit does not
    say which run they are of; and if they are of another dataset, of other data, or were computed with another section
    `evaluate`.
    """
    try:
        content = _committed(EVALUATION)
        metrics = json.loads(content)
        stages = yaml.safe_load(_committed(Path("dvc.lock")))["stages"]
        md5 = {out["path"]: out["md5"] for out in stages["evaluate"]["outs"]}[str(EVALUATION)]
        settings = Evaluate.model_validate(stages["evaluate"]["params"]["params.yaml"]["evaluate"])
        before = {name: str(stages["train"]["params"]["params.yaml"][name]) for name in CHOICE}
        today = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
        same_data = _sequences(stages, before["dataset"]) == _sequences(today, run["dataset"])
        # A stage that was run by hand leaves dvc.lock as it was: then that does not say which data today's metrics are of.
        recorded = {out["path"]: out["md5"] for out in today["evaluate"]["outs"]}[str(EVALUATION)]
        same_data &= hashlib.md5(EVALUATION.read_bytes(), usedforsecurity=False).hexdigest() == recorded
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    known = hashlib.md5(content, usedforsecurity=False).hexdigest() == md5
    if not known or settings != evaluate or before["dataset"] != run["dataset"] or not same_data:
        return None
    others = [before[name] for name in ("backbone", "encoder") if before[name] != run[name]]
    described = ", ".join([before["adapter"], *others, f"dim {before['dim']}", f"seed {before['seed']}"])
    return f"last commit ({described})", metrics


def _sequences(stages: dict[str, Any], dataset: str) -> str:
    """Return the checksum of the sequences that the stage evaluate of a lock file read."""
    return {str(dep["path"]): str(dep["md5"]) for dep in stages["evaluate"]["deps"]}[str(sequences_directory(dataset))]


def _committed(file: Path) -> bytes:
    """Return a file of the last commit. Raises OSError without git, and CalledProcessError if there is no such file or commit."""
    return subprocess.run(["git", "show", f"HEAD:./{file}"], capture_output=True, check=True).stdout


def selected_metrics(params: Params) -> dict[str, float]:
    """Return the selected run's test metrics by name.

    Raises UserError if they are missing, damaged, or belong to another run than the one that params.yaml selects.
    """
    metrics = read_json(EVALUATION, EVALUATE)
    record = read_signed(EVALUATED, EVALUATE)
    if record[EVALUATION.name] != sha256(EVALUATION):
        raise UserError(
            f"{EVALUATION} is damaged or not what the last test wrote, its checksum is not that in {EVALUATED}; "
            f"{EVALUATE} tests again"
        )
    selected = Run.of(params)
    if record["run"] != selected.choice or _trained_otherwise(record, selected):
        raise UserError(
            f"{EVALUATION} belongs to another run than the one that params.yaml selects; run `dvc repro`, or if that changes "
            "nothing, `dvc repro -f -s train evaluate`"
        )
    return dict(metrics)


def _trained_otherwise(record: dict[str, Any], selected: Run) -> bool:
    """Return whether the tested weights came from other data or code than the selected run's; False if that is not known."""
    try:
        return record.get("fingerprint", selected.fingerprint) != selected.fingerprint
    except UserError:  # the data is not here
        return False


def require_metrics(names: list[str], measured: Iterable[str], owner: str, command: str) -> None:
    """Raise UserError if a metric of `names` was not measured. owner and command: what lacks it and what computes it."""
    missing = sorted(set(names) - set(measured))
    if missing:
        raise UserError(
            f"{owner}: {', '.join(missing)} is missing, which evaluate.cutoffs in params.yaml asks for; {command} computes it"
        )


def selected_lines(
    metrics: dict[str, float],
    run: dict[str, str],
    cells: pl.DataFrame | None,
    names: list[str],
    committed: tuple[str, dict[str, float]] | None = None,
) -> list[list[str]]:
    """Return the header and rows of a table with the selected run and the grid's cells of its dataset and backbone, the highest
    first, and then the paper's row for it.

    metrics: test metrics of the run by name; run: its dataset, encoder, backbone, adapter, dim and seed as text; cells: rows from
    `read_cells`, or None; names: the metrics to show; committed: a further row, from `committed_run`. The last column is the
    difference of the first metric from the run's.
    """
    names = sorted(names, key=lambda name: (-int(name.partition("@")[2] or 0), -name.startswith("NDCG")))
    rows = [(f"this run ({run['adapter']}, dim {run['dim']}, seed {run['seed']})", metrics), *([committed] if committed else [])]
    if cells is not None:
        here = cells.filter((pl.col("dataset") == run["dataset"]) & (pl.col("backbone") == run["backbone"]))
        for key, group in here.group_by(["adapter", "dim", "encoder"], maintain_order=True):
            adapter, dim, encoder = map(str, key)
            means = {name: float(group[name].to_numpy().mean()) for name in names if name in group.columns}
            rows.append((f"grid: {adapter}, {encoder}, dim {dim} ({plural(group.height, 'seed')})", means))
    rows.sort(key=lambda row: -row[1].get(names[0], 0))
    paper = paper_table().filter(pl.all_horizontal(pl.col(key) == run[key] for key in KEYS))
    rows += [("paper (LLaMA3-8B, dim 128)", row) for row in paper.iter_rows(named=True)]
    lines = [["", *names, "to this run"]]
    for label, values in rows:
        own, other = metrics[names[0]], values.get(names[0])
        gap = "–" if values is metrics or other is None or not own else f"{100 * (other / own - 1):+.1f} %"
        lines.append([label, *(f"{values[name]:.4f}" if name in values else "–" for name in names), gap])
    return lines


def heading(run: dict[str, str]) -> str:
    return f"{pair_title(run)}, encoder {run['encoder']}"
