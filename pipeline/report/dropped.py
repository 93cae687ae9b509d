"""The report's section on what was understood of each dataset and what its filters dropped."""

from pipeline.artifacts import read_json
from pipeline.data.findings import findings
from pipeline.report.sections import Part, Section
from pipeline.report.tables import title
from pipeline.runs import preprocess_command, preprocess_report


def dropped_section(datasets: list[str]) -> list[Section]:
    """The findings of every dataset that was preprocessed here; none where none was, as where results were restored from git."""
    parts: list[Part] = []
    for dataset in datasets:
        file = preprocess_report(dataset)
        if file.is_file():
            found = findings(read_json(file, preprocess_command(dataset))["findings"])
            parts += [f"{title(dataset)}:", [finding.line() for finding in found]]
    return [Section("What was dropped", parts)] if parts else []
