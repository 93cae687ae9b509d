"""Say what was understood of the selected dataset and what was dropped, in metrics/check.json: `python -m stages.check`.

With `--estimate`, say how long the grid of params.yaml will take here, from a few steps of every method; nothing is written
but copies of published runs in scratch.
"""

import os
from pathlib import Path

from common.arguments import Arguments
from common.errors import UserError
from common.words import plural
from pipeline.artifacts import read_json, write_json
from pipeline.data.findings import Finding, findings
from pipeline.params import load_params
from pipeline.runs import preprocess_command, preprocess_report, sequences_directory, watched
from pipeline.training.sequences import read_sequences
from stages import run

CHECK = Path("metrics/check.json")


def beyond_history(dataset: str, max_history: int) -> list[Finding]:
    """Return the finding that users have more training items than a model reads; empty if none has.

    A model is trained on a user's last `max_history` + 1 training items.
    """
    trained, _ = read_sequences(sequences_directory(dataset))
    sizes = trained["train"].to_numpy()
    beyond = (sizes - (max_history + 1)).clip(min=0)
    if not (count := int(beyond.sum())):
        return []
    text = (
        f"Training leaves out {plural(count, 'interaction')} of {plural(int((beyond > 0).sum()), 'user')} with more than "
        f"{max_history + 1} training items; to use all, set train.max_history to {sizes.max() - 1}."
    )
    return [Finding("max_history", text, count, int(sizes.sum()), lost=True)]


def main() -> str:
    parser = Arguments(description=__doc__)
    parser.add_argument("--estimate", action="store_true", help="say how long the grid will take, and train nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, as for `python -m stages.grid`")
    arguments = parser.parse_args()
    params = load_params()
    if arguments.jobs < 1:
        raise UserError(f"--jobs is {arguments.jobs}; choose at least 1")
    if arguments.estimate:
        from pipeline.grid.estimate import estimate  # imports torch

        return estimate(params, arguments.jobs)
    check_unchanged = watched(params, lambda today: [today.dataset, today.train.max_history])
    found = findings(read_json(preprocess_report(params.dataset), preprocess_command(params.dataset))["findings"])
    found += beyond_history(params.dataset, params.train.max_history)
    check_unchanged()
    write_json(CHECK, {"dataset": params.dataset, "findings": [finding.record() for finding in found]})
    for finding in found:
        print(finding.line(), flush=True)
    warnings = sum(finding.warning for finding in found)
    return f"{params.dataset}: {plural(warnings, 'warning') if warnings else 'no warning'}, in {CHECK}"


if __name__ == "__main__":
    run(main)
