"""Take the checksums of the files of every dataset of kind `files`: `python -m stages.scan`.

DVC downloads such a dataset again if its checksums, its options or the code that reads it changed. If the files are not here, as
on a colleague's machine, the recorded checksums stay. Files that differ from the recorded ones are named.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from common.arguments import Arguments
from common.code import code_fingerprint
from common.dvc_state import has_remote
from common.errors import UserError
from common.words import plural
from pipeline.artifacts import read_json, sha256, write_json
from pipeline.data.sources.files import CODE, Files
from pipeline.params import load_params
from pipeline.runs import ROOT
from stages import run
from stages.validate import DOWNLOADS, with_place


def main() -> str:
    Arguments(description=__doc__).parse_args()
    own = {name: source for name, source in load_params().sources.items() if isinstance(source, Files)}
    folder = DOWNLOADS / "files"
    folder.mkdir(parents=True, exist_ok=True)
    scanned = 0
    for dataset, source in own.items():
        record = folder / f"{dataset}.json"
        try:
            files = {name: sha256(path) for name, path in source.own_files().items()}
            scanned += len(files)
        except UserError as error:
            known = recorded(record)
            if known.get("source") != source.of_download():
                advice = (
                    f"; whoever pushed the dataset can commit {record}, and the files need not be here" if has_remote() else ""
                )
                raise UserError(f"{with_place(error, dataset)}{advice}") from None
            print(f"scan: {dataset}: {error}; what was recorded of its files stays", flush=True)
            continue
        with suppress(UserError):  # a damaged record is written anew, and says nothing of the files before
            known = recorded(record)
            if known.get("source") == source.of_download() and (differences := compared(known["files"], files)):
                print(f"scan: {dataset}: {differences}; the dataset is made of the files that are here", flush=True)
        write_json(record, {"source": source.of_download(), "files": files, "code": code_fingerprint(ROOT, CODE)})
    for stale in folder.glob("*.json"):
        if stale.stem not in own:
            stale.unlink()
    return f"{plural(scanned, 'file')} of {plural(len(own), 'dataset')}"


def recorded(path: Path) -> dict[str, Any]:
    """Return what an earlier scan wrote; {} if there is nothing. Raises UserError for a damaged record."""
    if not path.is_file():
        return {}
    found = read_json(path, "`python -m stages.scan`")
    if not (isinstance(found, dict) and isinstance(found.get("files"), dict)):
        raise UserError(f"{path} is damaged; `python -m stages.scan`")
    return found


def compared(before: dict[str, str], now: dict[str, str]) -> str:
    """Return in words how files differ from those that were recorded; "" if they do not. Both: checksums by name."""
    found = {
        "changed since they were recorded": [name for name in now if name in before and now[name] != before[name]],
        "not recorded before": [name for name in now if name not in before],
        "recorded, but not here": [name for name in before if name not in now],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in found.items() if names)


if __name__ == "__main__":
    run(main)
