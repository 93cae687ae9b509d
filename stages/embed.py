"""Embed a dataset's item texts: `python -m stages.embed office minilm`.

On several GPUs or nodes: `accelerate launch -m stages.embed office llama3-8b`. If interrupted, rerun the command, with any number
of processes; finished shards are reused.
"""

import polars as pl

from common.arguments import Arguments
from common.code import code_fingerprint
from common.names import check_name
from common.vector_math import select_kernels
from pipeline.artifacts import RUNS, atomic_directory, verify, write_json
from pipeline.params import load_params
from pipeline.runs import ROOT, embeddings_directory, sequences_directory, watched
from pipeline.texts import TITLE
from stages import add_dataset, dvc_key, run


def main() -> str | None:
    parser = Arguments(description=__doc__)
    add_dataset(parser)
    parser.add_argument("encoder", nargs="?", help="a section of `encoders:`; default: the `encoder` of params.yaml")
    arguments = parser.parse_args()
    params = load_params()
    dataset = check_name("dataset", arguments.dataset, params.sources)
    encoder_name = check_name("encoder", arguments.encoder or params.encoder, params.encoders)
    encoder = params.encoders[encoder_name]
    code = ["pipeline/embedding"]
    check_unchanged = watched(params, lambda today: [today.encoders[encoder_name], code_fingerprint(ROOT, code)])
    sequences = sequences_directory(dataset)
    sidecar = verify(sequences, f"`python -m stages.preprocess {dataset}`", ["items.parquet"])
    texts = pl.read_parquet(sequences / "items.parquet", glob=False)["text"].to_list()

    from pipeline.embedding.processes import Processes
    from pipeline.embedding.shards import Shards

    select_kernels()
    processes = Processes()
    shards = Shards(texts, encoder, processes)
    if encoder.dtype == "auto" and processes.first:
        print(f"dtype: {shards.encoder.options.dtype} (auto)")
    record = shards.embed()
    if not processes.first:
        return None
    target = embeddings_directory(dataset, encoder_name)
    provenance = {
        "dataset": dataset,
        "template": sidecar.get("template", TITLE),
        "encoder": shards.encoder.options.model_dump(),
        "model": shards.encoder.identity,
        "items": sidecar["files"]["items.parquet"],
    }
    with atomic_directory(target, provenance) as directory:
        n, width = shards.save(directory / "embeddings.npy")
        check_unchanged()
    write_json(RUNS / f"embed-{dataset}-{encoder_name}.json", {"items": n, **record})
    if dvc_key():  # else they stay: DVC deletes an output that it has not recorded, and makes it again from the shards
        shards.remove()
    now = record["embedded_now"]
    reused = record["shards"] - now["shards"]
    return (
        f"{dataset}: {n:,} items x {width} in {target} ("
        + (f"{reused} of {record['shards']} shards from an earlier run; " if reused else "")
        + f"{now['tokens']:,} tokens in {now['seconds']:.1f} s)"
    )


if __name__ == "__main__":
    run(main)
