"""What the report says was understood of each dataset, and what its filters dropped."""

from typing import Any

from pipeline.artifacts import read_json
from pipeline.data.findings import findings
from pipeline.report.titles import title
from pipeline.runs import preprocess_command, preprocess_report


def dropped_parts(datasets: list[str]) -> list[Any]:
    """Return a line and a list of findings for every dataset that was preprocessed here; [] if results were restored from git."""
    parts: list[Any] = []
    for dataset in datasets:
        file = preprocess_report(dataset)
        if file.is_file():
            found = findings(read_json(file, preprocess_command(dataset))["findings"])
            parts += [f"{title(dataset)}:", [finding.line() for finding in found if finding.name != "tied"]]  # Table 1 says it
    return parts
