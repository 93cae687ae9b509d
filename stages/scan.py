"""Take the checksums of the files of every dataset of kind `files`: `python -m stages.scan`.

DVC downloads such a dataset again where they, or the source's options, have changed. Where the files are not here, as on a
colleague's machine, what was recorded stays.
"""

import os
from argparse import ArgumentParser

from common.code import code_fingerprint
from common.errors import UserError
from pipeline.artifacts import main_checkout, read_json, sha256, write_json
from pipeline.data.findings import plural
from pipeline.data.sources.files import CODE, Files, input_files
from pipeline.params import load_params
from pipeline.runs import ROOT
from stages import run
from stages.validate import DOWNLOADS, with_place


def main() -> str:
    ArgumentParser(description=__doc__).parse_args()
    own = {name: source for name, source in load_params().sources.items() if isinstance(source, Files)}
    folder = DOWNLOADS / "files"
    folder.mkdir(parents=True, exist_ok=True)
    scanned = 0
    for dataset, source in own.items():
        recorded = folder / f"{dataset}.json"
        try:
            files = {os.path.relpath(path, main_checkout()): sha256(path) for path in input_files(source)}
            scanned += len(files)
        except UserError as error:
            known = read_json(recorded, "`python -m stages.scan`") if recorded.is_file() else {}
            if known.get("source") != source.of_download():
                raise with_place(error, dataset) from None
            print(f"scan: {dataset}: {error}; what was recorded of its files stays", flush=True)
            continue
        write_json(recorded, {"source": source.of_download(), "files": files, "code": code_fingerprint(ROOT, CODE)})
    for stale in folder.glob("*.json"):
        if stale.stem not in own:
            stale.unlink()
    return f"{plural(scanned, 'file')} of {plural(len(own), 'dataset')}"


if __name__ == "__main__":
    run(main)
