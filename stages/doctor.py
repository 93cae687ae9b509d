"""Check whether this machine can run the selected run: `python -m stages.doctor`.

With `--secrets`, it only checks that .dvc/config holds no password, key or token.
"""

from common.arguments import Arguments
from common.errors import UserError
from pipeline.doctor import Examination
from pipeline.params import load_params
from pipeline.remotes import refuse_secrets
from pipeline.runs import Run
from stages import run


def main() -> str:
    parser = Arguments(description=__doc__)
    parser.add_argument("--secrets", action="store_true", help="only check that .dvc/config holds no password, key or token")
    if parser.parse_args().secrets:
        refuse_secrets()
        return "no secret in .dvc/config"
    params = load_params()
    examination = Examination(params)
    print(f"{'run':10}{Run.of(params).name}, encoder {params.encoder}")
    print(examination.page(), flush=True)
    if examination.problems:
        raise UserError("; ".join(examination.problems))
    return "this machine can run it"


if __name__ == "__main__":
    run(main)
