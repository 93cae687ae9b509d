"""Compute the plain and the centred spectrum of a dataset's embeddings: `python -m stages.svd office minilm`.

On several GPUs, or nodes that share a file system: `accelerate launch -m stages.svd office llama3-8b`.
"""

import sys
import time
from contextlib import nullcontext

from common.arguments import Arguments
from common.code import code_fingerprint
from common.errors import UserError
from common.names import check_name
from common.vector_math import select_kernels
from pipeline.artifacts import RUNS, atomic_directory, verify, write_json
from pipeline.params import load_params
from pipeline.runs import ROOT, embeddings_directory, spectrum_directory, watched
from stages import add_dataset, run


def main() -> str | None:
    parser = Arguments(description=__doc__)
    add_dataset(parser)
    parser.add_argument("encoder", nargs="?", help="a section of `encoders:`; default: the `encoder` of params.yaml")
    arguments = parser.parse_args()
    params = load_params()
    check_unchanged = watched(params, lambda today: [today.svd, code_fingerprint(ROOT, ["pipeline/embedding"])])
    dataset = check_name("dataset", arguments.dataset, params.sources)
    encoder = check_name("encoder", arguments.encoder or params.encoder, params.encoders)
    source = embeddings_directory(dataset, encoder)
    command = f"`python -m stages.embed {dataset} {encoder}`"
    provenance = {"embeddings": verify(source, command), "rank_rtol": params.svd.rank_rtol}

    from pipeline.embedding.processes import Processes
    from pipeline.embedding.spectrum import decompose

    select_kernels()
    processes = Processes()
    target = spectrum_directory(dataset, encoder)
    start = time.perf_counter()
    # Process 0 creates the directory, and all processes write to it.
    with atomic_directory(target, provenance) if processes.first else nullcontext() as first_directory:
        try:
            directory = processes.gather(first_directory)[0]
            result = decompose(source / "embeddings.npy", directory, params.svd.rank_rtol, processes)
        except UserError:
            if processes.first:
                raise
            sys.exit(1)  # process 0 prints the message
        provenance |= result.measured()
        if processes.first:
            check_unchanged()
    if not processes.first:
        return None
    seconds = {"seconds": time.perf_counter() - start, **result.seconds}
    write_json(RUNS / f"svd-{dataset}-{encoder}.json", seconds | processes.record())
    if below := result.plain.below_precision:
        print(
            f"svd: {below} of {min(result.shape)} directions are below {result.precision:.0e} of the first singular value, "
            "the precision of the embeddings, and were dropped",
            file=sys.stderr,
        )
    return (
        f"{dataset}: rank {result.plain.rank} (centred {result.centred.rank}) of {result.shape[1]}, "
        f"residual {result.plain.residual:.1e}, in {target}"
    )


if __name__ == "__main__":
    run(main)
