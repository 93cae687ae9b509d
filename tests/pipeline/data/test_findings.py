"""Findings: a loss of more than a tenth is a warning, and what is kept in JSON comes back."""

import json

from pipeline.data.findings import Finding, findings


def test_a_loss_of_more_than_a_tenth_is_a_warning() -> None:
    assert Finding("core", "Dropped.", 10, 100, lost=True).line() == "Dropped."
    assert Finding("core", "Dropped.", 11, 100, lost=True).line() == "WARNING (11.0 %): Dropped."
    assert Finding("entities", "Replaced.", 99, 100).line() == "Replaced.", "nothing is lost"


def test_findings_come_back_from_json() -> None:
    made = [Finding("core", "Dropped.", 30, 100, lost=True), Finding("unit", "Times are in seconds.")]
    records = json.loads(json.dumps([finding.record() for finding in made]))
    assert [record["warning"] for record in records] == [True, False]
    assert findings(records) == made
