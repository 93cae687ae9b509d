"""Answer requests for recommendations over HTTP from a package: `python -m stages.serve`.

The package may lie anywhere; it carries the same server as `serve.py`. Needs `pip install '.[serve]'`.
"""

from importlib.util import find_spec
from pathlib import Path

from common.arguments import Arguments
from common.errors import UserError
from pipeline.serving.server import PackageError, port_number, serve
from stages import run

NEEDED = ("fastapi", "onnxruntime", "uvicorn")


def main() -> str:
    parser = Arguments(description=__doc__)
    package = Path("data/packages/selected")
    parser.add_argument(
        "package", nargs="?", type=Path, default=package, help=f"a folder that the package stage made ({package})"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable from other machines (127.0.0.1)")
    parser.add_argument("--port", type=port_number, default=8000, help="0: any free port, which the first line names (8000)")
    given = parser.parse_args()
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"Python package '{missing[0]}' is missing; `pip install '.[serve]'`")
    try:
        serve(given.package, given.host, given.port)
    except PackageError as error:
        raise UserError(str(error)) from None
    return "stopped"


if __name__ == "__main__":
    run(main)
