"""Download or generate a dataset's files into data/raw/<dataset>: `python -m stages.download office`."""

from typing import Any

from common.arguments import Arguments
from common.code import code_fingerprint
from common.dvc_state import has_remote
from common.errors import UserError
from common.names import check_name
from pipeline.artifacts import atomic_directory
from pipeline.data import Source
from pipeline.data.sources import source_module
from pipeline.params import load_params
from pipeline.runs import ROOT, raw_directory, watched
from stages import add_dataset, run
from stages.validate import with_place


def main() -> str:
    parser = Arguments(description=__doc__)
    add_dataset(parser)
    dataset = parser.parse_args().dataset
    params = load_params()
    source = params.sources[check_name("dataset", dataset, params.sources)]
    described = described_by(source)
    code = [f"pipeline/data/sources/{source.kind}.py"]
    check_unchanged = watched(params, lambda today: [described_by(today.sources[dataset]), code_fingerprint(ROOT, code)])
    target = raw_directory(dataset)
    with atomic_directory(target, {"source": described}) as directory:
        try:
            source_module(source.kind).fetch(source, params.download.mirror, directory)
        except UserError as error:
            if source.kind == "files":
                error = with_place(error, dataset)
                if has_remote():
                    error = UserError(f"{error}; if a colleague pushed it: `dvc pull {target}`, then the same command")
            raise error from None
        check_unchanged()
        files = sorted(path.name for path in directory.iterdir())
    return f"{dataset}: {', '.join(files)} in {target}"


def described_by(source: Source) -> dict[str, Any]:
    """Return the options that decide the files; `sha256` only checks them."""
    return {name: value for name, value in source.of_download().items() if name != "sha256"}


if __name__ == "__main__":
    run(main)
