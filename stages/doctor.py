"""What the selected run will meet on this machine: `python -m stages.doctor`; with `--secrets`, .dvc/config only is checked."""

from argparse import ArgumentParser

from common.errors import UserError
from pipeline.doctor import Examination
from pipeline.params import load_params
from pipeline.remotes import refuse_secrets
from pipeline.runs import Run
from stages import run


def main() -> str:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--secrets", action="store_true", help="refuse a password, key or token in .dvc/config")
    if parser.parse_args().secrets:
        refuse_secrets()
        return "no secret in .dvc/config"
    params = load_params()
    examination = Examination(params)
    print(f"{'run':10}{Run.of(params).name}, encoder {params.encoder}")
    print(examination.page(), flush=True)
    if examination.troubles:
        raise UserError("; ".join(examination.troubles))
    return "nothing stands in the way of this run"


if __name__ == "__main__":
    run(main)
