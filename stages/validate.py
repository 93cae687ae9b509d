"""Check params.yaml before any other stage runs: `python -m stages.validate`.

Every other stage depends on `data/validated.json`, so DVC builds no path from a name that was not checked. The file always has
the same content, so only a failed check affects the other stages. The settings that decide a dataset's download and its
preprocessing are written to files of their own, so an option of one dataset leaves the others unaffected.
"""

from pathlib import Path

from common.arguments import Arguments
from common.errors import UserError
from pipeline.artifacts import atomic_directory, write_json
from pipeline.data import SOURCES
from pipeline.params import PARAMS_FILE, Params, load_params
from pipeline.runs import CHOICE, watched
from stages import run

VALIDATED = Path("data/validated.json")
DOWNLOADS = Path("data/sources")  # <kind>/<dataset>.json
PREPROCESSING = Path("data/preprocessing")


def main() -> str:
    Arguments(description=__doc__).parse_args()
    try:
        params = load_params()
    except UserError as error:
        # DVC has written what -S asks for before it starts a stage. What else the file holds is the user's, so nothing is undone.
        refused = str(error).startswith(f"{PARAMS_FILE}: ")
        advice = (
            f"; {PARAMS_FILE} still holds it: correct it there; what has changed: `git diff {PARAMS_FILE}`" if refused else ""
        )
        raise UserError(f"{error}{advice}") from None
    # Without defaults, because `write_options` tells an option that is set to its default from one that is not set.
    check_unchanged = watched(params, lambda today: today.model_dump(exclude_unset=True))
    write_options(params)
    check_unchanged()
    write_json(VALIDATED, {"params.yaml": "valid"})
    return ", ".join(f"{name} {getattr(params, name)}" for name in CHOICE)


def with_place(error: UserError, dataset: str) -> UserError:
    """Return an error of a user's own files with the place of their options appended; `-S` adds to what is there."""
    return UserError(f"{error} (its options: sources.{dataset} in {PARAMS_FILE}, to which -S adds)")


def write_options(params: Params) -> None:
    """A file per dataset with what decides its download, by kind of source, and one with what decides its preprocessing.

    Own files are left out of the former: `stages.scan` writes theirs, with the files' checksums.
    """
    for kind in SOURCES:
        if kind != "files":
            with atomic_directory(DOWNLOADS / kind) as directory:
                for dataset, source in params.sources.items():
                    if source.kind == kind:
                        write_json(directory / f"{dataset}.json", source.of_download())
    with atomic_directory(PREPROCESSING) as directory:
        for dataset, source in params.sources.items():
            own = "ties" in source.model_fields_set  # what `check` says of ties depends on it, and the sequences do not
            write_json(directory / f"{dataset}.json", params.of_preprocessing(dataset) | ({"ties_chosen": True} if own else {}))


if __name__ == "__main__":
    run(main)
