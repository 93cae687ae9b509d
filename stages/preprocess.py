"""Filter, cap, order and index a dataset's interactions: `python -m stages.preprocess office`."""

from common.arguments import Arguments
from common.code import code_fingerprint
from common.words import plural
from pipeline.artifacts import atomic_directory, verify, write_json
from pipeline.data.dropped import dropped
from pipeline.data.interactions import build_sequences
from pipeline.data.sources import source_module
from pipeline.params import load_params
from pipeline.runs import ROOT, preprocess_report, raw_directory, sequences_directory, watched
from stages import add_dataset, run


def main() -> str:
    parser = Arguments(description=__doc__)
    add_dataset(parser)
    dataset = parser.parse_args().dataset
    params = load_params()
    code = ["pipeline/data", "pipeline/texts.py"]
    options = params.preprocessing(dataset)
    check_unchanged = watched(params, lambda today: [today.of_preprocessing(dataset), code_fingerprint(ROOT, code)])
    source = params.sources[dataset]
    raw = raw_directory(dataset)
    settings = params.of_preprocessing(dataset)
    provenance = {"dataset": dataset, **settings, "raw": verify(raw, f"`python -m stages.download {dataset}`")}
    tables = source_module(source.kind).read(source, raw)
    places = params.places_of_split(dataset)
    sequences = build_sequences(tables, options, settings["template"], f"params.yaml: templates.{dataset}", places)
    target = sequences_directory(dataset)
    with atomic_directory(target, provenance) as directory:
        sequences.users.write_parquet(directory / "sequences.parquet")
        sequences.items.write_parquet(directory / "items.parquet")
        write_json(directory / "statistics.json", sequences.statistics)
        check_unchanged()
    found = [*tables.findings, *dropped(tables, sequences, options, params.ties_chosen(dataset))]
    write_json(preprocess_report(dataset), {"findings": [finding.record() for finding in found]})
    for finding in found:
        if finding.lost:
            print(finding.line(), flush=True)
    size = sequences.statistics
    counts = ", ".join(plural(size[f"{noun}s"], noun) for noun in ("user", "item", "interaction"))
    return f"{dataset}: {counts} in {target}"


if __name__ == "__main__":
    run(main)
