"""What DVC has to know of every kind of source."""

from pathlib import Path

import yaml

from pipeline.data import SOURCES
from pipeline.data.sources.files import CODE
from tests.pipeline.test_runs import reached

ROOT = Path(__file__).parents[3]


def test_every_kind_of_source_has_the_folder_that_its_download_depends_on() -> None:
    """`validate` writes a source's options there; of your own files, `scan` does, with their checksums."""
    validate, scan = (yaml.safe_load((ROOT / name).read_text())["stages"] for name in ("dvc.yaml", "data/dvc.yaml"))
    written = {*validate["validate"]["outs"], *(path for out in scan["scan"]["outs"] for path in out)}
    assert {f"data/sources/{kind}" for kind in SOURCES} <= written, "add it to the outs of validate in dvc.yaml"


def test_the_fingerprint_of_the_readers_code_covers_what_reads_own_files() -> None:
    """Else an edited reader would leave old raw files in place."""
    readers = {file for file in reached(["pipeline/data/sources/files.py"]) if Path(file).parent == Path("pipeline/data")}
    assert {*CODE} == readers - {"pipeline/data/__init__.py"}
