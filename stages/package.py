"""Put the trained checkpoint into a folder that runs without this project: `python -m stages.package`.

The folder is compared with the checkpoint in onnxruntime, and kept only if both agree. Needs `pip install '.[package]'`.
"""

import sys
from pathlib import Path

from common.arguments import Arguments
from common.code import code_fingerprint
from common.words import plural
from pipeline.artifacts import SIDECAR, read_signed
from pipeline.params import load_params
from pipeline.runs import CHECKPOINT, ROOT, preprocess_command, watched
from stages import check_checkpoint, run

CODE = ("pipeline/serving",)


def main() -> str:
    parser = Arguments(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, metavar="DIR", help=f"a trained run ({CHECKPOINT})")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload it to a private model repository of Hugging Face")
    parser.add_argument("--new-items", type=Path, metavar="FILE", help="catalogue with items that the training did not know")
    given = parser.parse_args()
    check_checkpoint(given.checkpoint)
    check_unchanged = watched(load_params(), lambda today: [today.evaluate.cutoffs, code_fingerprint(ROOT, CODE)])

    from pipeline.serving.card import source_kind
    from pipeline.serving.package import PACKAGE, push_to_hub, write_package
    from pipeline.serving.recommender import Recommender

    recommender = Recommender.load(given.checkpoint)
    if given.new_items:
        recommender = recommender.with_new_items(given.new_items)
    compared = write_package(recommender, check_unchanged=check_unchanged)
    if given.new_items or given.checkpoint != CHECKPOINT:
        print(
            "package: DVC does not know this package: `dvc push` shares it only after `dvc commit -f serving/dvc.yaml:package`",
            file=sys.stderr,
        )
    summary = (
        f"{recommender.run.name} in {PACKAGE}; the ten best items of {plural(int(compared['users']), 'user')} are the "
        f"checkpoint's, states differ by {compared['states']:.0e} at most"
    )
    if given.push_to_hub:
        sequences = read_signed(recommender.run.sequences / SIDECAR, preprocess_command(recommender.run.dataset))
        summary += f"; uploaded to {push_to_hub(PACKAGE, given.push_to_hub, source_kind(sequences))}"
    return summary


if __name__ == "__main__":
    run(main)
