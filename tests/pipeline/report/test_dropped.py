"""What the report says of dropped interactions."""

from pathlib import Path

from pipeline.params import load_params
from pipeline.report.write import write_report


def test_what_was_dropped_is_a_section_of_the_report(reported: Path) -> None:
    from pipeline.artifacts import write_json
    from pipeline.data.findings import Finding
    from pipeline.runs import preprocess_report

    assert "What was dropped" not in (reported / "metrics/report.md").read_text()
    finding = Finding("cap", "Older, dropped: 30 interactions.", 30, 100, lost=True)
    write_json(preprocess_report("tiny"), {"findings": [finding.record()]})
    write_report(load_params())
    for name in ("report.md", "report.html"):
        assert "WARNING (30.0 %): Older, dropped: 30 interactions." in (reported / "metrics" / name).read_text()
