"""What the report says of interactions with equal timestamps, whose order the preprocessing chooses."""

from typing import NamedTuple

from pipeline.artifacts import read_json, verify
from pipeline.runs import preprocess_command, sequences_directory

MATTERS = 0.01  # of the test items: below this share, the order of ties decides no conclusion
RULES = {
    "item": "are ordered by item id",
    "shuffled": "are in an order shuffled by a hash of user and item",
    "file": "keep the source's order",
}
LEARNABLE = (
    "An order by item id is the same for every user, so a model that knows IDs can learn it: "
    "compare with `preprocess.ties: shuffled` before you conclude anything."
)


class Ties(NamedTuple):
    """What is said of a dataset's ties, and whether a model can learn their order."""

    text: str
    learnable: bool


def ties_of(dataset: str, title: str) -> Ties | None:
    """Return how the dataset's interactions with equal timestamps are ordered and what share of its items that concerns.

    title: the dataset's name in the report. None if less than MATTERS of the test items is tied. A test item is tied if the item
    before it has the same timestamp. Raises UserError if the artifact is missing or damaged.
    """
    command = preprocess_command(dataset)
    directory = sequences_directory(dataset)
    ties = verify(directory, command, ["statistics.json"]).get("preprocess", {}).get("ties")
    tied = read_json(directory / "statistics.json", command).get("tied", {})
    if tied.get("test", 0.0) < MATTERS or ties not in RULES:
        return None
    training, valid, test = (f"{100 * tied[name]:.1f} %" for name in ("steps", "validation", "test"))
    shares = f"{training} of the training items after a user's first, {valid} of the validation and {test} of the test items"
    sentence = f"{title}: interactions of a user with equal timestamps {RULES[ties]}; this decides {shares}."
    learnable = ties == "item"
    return Ties(f"{sentence} {LEARNABLE}" if learnable else sentence, learnable)
