"""Decompose a dataset's embeddings, plain and centred: `python -m stages.svd office minilm`."""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from models.errors import UserError
from models.registry import check_name
from pipeline.artifacts import SIDECAR, atomic_directory, read_json
from pipeline.params import load_params
from pipeline.runs import spectrum_directory
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("encoder")
    arguments = parser.parse_args()
    params = load_params()
    dataset = check_name("dataset", arguments.dataset, params.sources)
    encoder = check_name("encoder", arguments.encoder, params.encoders)
    source = Path("data/embeddings") / dataset / encoder
    made_by = f"`python -m stages.embed {dataset} {encoder}`"
    embedded = read_json(source / SIDECAR, made_by)
    try:
        embeddings = np.load(source / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise UserError(f"{source / 'embeddings.npy'} cannot be read ({error}); it is made by {made_by}") from None

    from pipeline.spectrum import decompose, save_spectrum

    plain, centred = decompose(embeddings, params.svd.rank_rtol)
    made_from = {
        "embeddings": embedded,
        "rank_rtol": params.svd.rank_rtol,
        **{
            name: {"rank": made.spectrum.rank, "residual": made.residual, "orthogonality": made.orthogonality}
            for name, made in (("plain", plain), ("centred", centred))
        },
    }
    target = spectrum_directory(dataset, encoder)
    with atomic_directory(target, made_from) as directory:
        save_spectrum(plain.spectrum, directory)
        save_spectrum(centred.spectrum, directory / "centred")
    return (
        f"{dataset}: rank {plain.spectrum.rank} (centred {centred.spectrum.rank}) of {embeddings.shape[1]}, "
        f"residual {plain.residual:.1e}, in {target}"
    )


if __name__ == "__main__":
    run(main)
