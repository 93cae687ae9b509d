"""Check all of params.yaml before anything is spent or replaced: `python -m stages.validate`.

Every other stage depends on `data/validated.json`, so that DVC makes no path of a name that was not checked. The file is always
the same: only a refusal stops the stages behind it. What decides a dataset's download and its preprocessing is written into a
file of its own, so that another option of one dataset leaves the others alone.
"""

from argparse import ArgumentParser
from pathlib import Path

from pipeline.artifacts import atomic_directory, write_json
from pipeline.data import SOURCES
from pipeline.params import Params, load_params
from stages import run

VALIDATED = Path("data/validated.json")
DOWNLOADS = Path("data/sources")  # <kind>/<dataset>.json
PREPROCESSING = Path("data/preprocessing")


def main() -> str:
    ArgumentParser(description=__doc__).parse_args()
    params = load_params()
    write_options(params)
    write_json(VALIDATED, {"params.yaml": "valid"})
    names = ("dataset", "encoder", "backbone", "adapter", "dim", "seed")
    return ", ".join(f"{name} {getattr(params, name)}" for name in names)


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
        for dataset in params.sources:
            write_json(directory / f"{dataset}.json", params.of_preprocessing(dataset))


if __name__ == "__main__":
    run(main)
