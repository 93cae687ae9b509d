"""Decompose a dataset's embeddings, plain and centred: `python -m stages.svd office minilm`.

On several GPUs or nodes with one file system: `accelerate launch -m stages.svd office llama3-8b`.
"""

import sys
import time
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path

from common.errors import UserError
from common.names import check_name
from pipeline.artifacts import RUNS, atomic_directory, verify, write_json
from pipeline.params import load_params
from pipeline.runs import spectrum_directory
from stages import add_dataset, run


def main() -> str | None:
    parser = ArgumentParser(description=__doc__)
    add_dataset(parser)
    parser.add_argument("encoder", nargs="?", help="a section of `encoders:`; the `encoder` of params.yaml if left out")
    arguments = parser.parse_args()
    params = load_params()
    dataset = check_name("dataset", arguments.dataset, params.sources)
    encoder = check_name("encoder", arguments.encoder or params.encoder, params.encoders)
    source = Path("data/embeddings") / dataset / encoder
    made_by = f"`python -m stages.embed {dataset} {encoder}`"
    made_from = {"embeddings": verify(source, made_by), "rank_rtol": params.svd.rank_rtol}

    from pipeline.device import environment
    from pipeline.embedding.processes import Processes
    from pipeline.embedding.spectrum import decompose

    processes = Processes()
    target = spectrum_directory(dataset, encoder)
    start = time.perf_counter()
    with atomic_directory(target, made_from) if processes.first else nullcontext() as own:
        try:
            directory = processes.gather(own)[0]
            made = decompose(source / "embeddings.npy", directory, params.svd.rank_rtol, processes)
        except UserError:
            if processes.first:
                raise
            sys.exit(1)  # the first says it
        made_from |= made.measured()
    if not processes.first:
        return None
    seconds = {"seconds": time.perf_counter() - start, **made.seconds}
    write_json(RUNS / f"svd-{dataset}-{encoder}.json", {**seconds, "processes": processes.count, **environment(processes.device)})
    if below := made.plain.below_precision:
        print(
            f"svd: {below} of {min(made.shape)} directions are below {made.precision:.0e} of the first singular value, "
            "where rounding rules; dropped",
            file=sys.stderr,
        )
    return (
        f"{dataset}: rank {made.plain.rank} (centred {made.centred.rank}) of {made.shape[1]}, "
        f"residual {made.plain.residual:.1e}, in {target}"
    )


if __name__ == "__main__":
    run(main)
