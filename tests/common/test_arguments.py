"""The options of a command."""

import pytest

from common.arguments import Arguments


def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Arguments(prog="tune.py")
    parser.add_argument("dataset")
    with pytest.raises(SystemExit, match=r"^2$"):
        parser.parse_args([])
    told = "tune: the following arguments are required: dataset; `python -m stages.tune --help` lists the options\n"
    assert capsys.readouterr().err == told
