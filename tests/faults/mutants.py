"""Change the code in small ways and see whether its tests notice: `python -m tests.faults.mutants ranking spectrum`.

Cosmic Ray makes the mutants. It is no dependency of the project: `pip install --target FOLDER cosmic-ray`, and put FOLDER on
PYTHONPATH. A sample is drawn: first the place in the code, then one of the changes that are possible there. Annotations are left
alone, since no program runs differently without them. Each mutant is a fork of this process, which has the installed packages
imported, and runs the module's own tests until the first that fails. The mutants that no test noticed are printed.
"""

import argparse
import ast
import contextlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TESTS = {
    "pipeline/training/ranking.py": ("tests/pipeline/training/test_ranking.py",),
    "pipeline/training/sequences.py": ("tests/pipeline/training/test_sequences.py",),
    "pipeline/training/batches.py": ("tests/pipeline/training/test_batches.py",),
    "pipeline/data/interactions.py": ("tests/pipeline/data/test_interactions.py",),
    "pipeline/embedding/spectrum.py": ("tests/pipeline/embedding/test_spectrum.py",),
    "pipeline/report/significance.py": ("tests/pipeline/report/test_significance.py",),
}
SURVIVED = 0  # exit status of tests that pass
SLOWER = 5  # times the seconds of the unchanged code, until a mutant is taken to hang: it is killed

Place = tuple[int, int, str]  # line, column, kind of change


def mutants(source: str) -> dict[Place, list[str]]:
    """All mutants of a module, by place."""
    operators = import_module("cosmic_ray.operators.provider").OperatorProvider()
    visitor = import_module("cosmic_ray.mutating").MutationVisitor
    tree = import_module("cosmic_ray.ast")
    annotated = annotations(source)
    found = defaultdict(list)
    for name in operators:
        if name.startswith("Variable"):  # these need to be told which variables
            continue
        operator = operators[name]()
        nodes = tree.ast_nodes(tree.get_ast(source))
        starts = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, column) in enumerate(starts):
            if not any(start <= (line, column) < end for start, end in annotated):
                kind = name.split("_")[0]
                found[line, column, kind].append(visitor.mutate_code(source, operator, occurrence))
    return dict(sorted(found.items()))


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end, as line and column, of every annotation."""
    nodes = [getattr(node, field, None) for node in ast.walk(ast.parse(source)) for field in ("annotation", "returns")]
    return [((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)) for node in nodes if node is not None]


def noticed(file: Path, source: str | None, tests: tuple[str, ...], limit: float, log: Path) -> int | None:
    """Run the tests with `source` for the code of `file`; return pytest's exit status, or None if the time was over."""
    child = os.fork()
    if child == 0:
        status: Any = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.setsid()
            if source is not None:
                load_instead(file, source)
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", *tests]))
            modules = {
                name for name, module in sys.modules.items() if "site-packages" in (getattr(module, "__file__", None) or "")
            }
            log.with_suffix(".modules").write_text(json.dumps(sorted(modules)))
        finally:
            os._exit(status)
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def load_instead(file: Path, source: str) -> None:
    """Let Python import `source` where it asks for `file`."""
    loader = importlib.machinery.SourceFileLoader
    get_code = loader.get_code

    def changed(self: Any, name: str) -> Any:
        return compile(source, str(file), "exec") if Path(self.path).resolve() == file else get_code(self, name)

    loader.get_code = changed


def test_module(name: str, sample: int, seed: int, folder: Path) -> tuple[int, int]:
    """Test a sample of a module's mutants; return how many were killed, and how many there were."""
    file, tests, log = ROOT / name, TESTS[name], folder / "log"
    source = file.read_text(encoding="utf-8")
    places = mutants(source)
    for _ in range(2):  # the second time what it needs is imported, as for the mutants
        start = time.monotonic()
        if noticed(file, source, tests, 3600, log) != SURVIVED:
            sys.exit(f"the tests of {name} fail without a mutant:\n{log.read_text(errors='replace')[-2000:]}")
        seconds = time.monotonic() - start
        for module in json.loads(log.with_suffix(".modules").read_text()):
            with contextlib.suppress(Exception):
                import_module(module)
    chance = random.Random(seed)
    chosen = sorted(chance.sample(sorted(places), min(sample, len(places))))
    print(f"{name}: {len(chosen)} of {len(places)} places, {seconds:.1f} s each", flush=True)
    killed = 0
    for place in chosen:
        mutant = chance.choice(places[place])
        if noticed(file, mutant, tests, 60 + SLOWER * seconds, log) == SURVIVED:
            line = place[0] - 1
            print(f"  survived, line {place[0]}: {source.splitlines()[line].strip()}")
            print(f"      {place[2]}: {mutant.splitlines()[line].strip()}", flush=True)
        else:
            killed += 1
    print(f"{name}: {killed} of {len(chosen)} killed, {killed / len(chosen):.0%}", flush=True)
    return killed, len(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=[Path(name).stem for name in TESTS], help="names, such as ranking")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in TESTS:
            if Path(name).stem in given.modules:
                test_module(name, given.sample, given.seed, Path(folder))


if __name__ == "__main__":
    main()
