"""Fingerprints of Python code. Comments, docstrings and formatting do not change them."""

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from common.errors import UserError

SKIPPED = {tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}
# From Python 3.12 on an f-string is several tokens; before, one.
FSTRING_START, FSTRING_END = getattr(tokenize, "FSTRING_START", -1), getattr(tokenize, "FSTRING_END", -1)


def code_fingerprint(root: Path, paths: Iterable[str]) -> str:
    """Return a SHA-256, 64 hexadecimal digits, of the code of the Python files at `paths`, relative to `root`.

    A directory means all Python files below it. File names are part of the fingerprint; comments, docstrings, blank lines and
    spaces within a line are not. The result is the same on Python 3.11 to 3.13, and is cached until the process ends. Raises
    UserError for a file that is not valid Python.
    """
    return _fingerprint(root, tuple(paths))


@cache
def _fingerprint(root: Path, paths: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for file in python_files(root, paths):
        digest.update(f"{file}\0".encode())
        try:
            tokens = code_tokens((root / file).read_text(encoding="utf-8"))
        except (SyntaxError, tokenize.TokenError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not valid Python ({error}); mend it, then run the same command again") from None
        for token in tokens:
            digest.update(f"{token}\0".encode())
    return digest.hexdigest()


def forget() -> None:
    """Let the next fingerprint read the files anew."""
    _fingerprint.cache_clear()
    with_siblings.cache_clear()


@cache
def with_siblings(root: Path, file: str) -> tuple[str, ...]:
    """Return `file` and the modules of its folder that it imports, directly or indirectly, sorted, relative to `root`."""
    folder, found, waiting = Path(file).parent, {file}, [file]
    package = ".".join(folder.parts)
    while waiting:
        for node in ast.walk(ast.parse((root / waiting.pop()).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{package}."):
                sibling = f"{node.module.replace('.', '/')}.py"
                if sibling not in found:
                    found.add(sibling)
                    waiting.append(sibling)
    return tuple(sorted(found))


def python_files(root: Path, paths: Iterable[str]) -> list[str]:
    """Return the Python files that `paths` name or contain, relative to `root`, sorted; in a directory, no hidden ones."""
    files: set[Path] = set()
    for path in paths:
        files |= set((root / path).rglob("[!.]*.py")) if (root / path).is_dir() else {root / path}
    return sorted(file.relative_to(root).as_posix() for file in files)


def code_tokens(source: str) -> list[str]:
    """Return the tokens of `source` that decide its behaviour: INDENT, DEDENT and NEWLINE by name, other tokens by their text.

    A line that is only a string, such as a docstring, has no tokens:

    >>> code_tokens('"About x."' + chr(10) + 'x  =  1  # one' + chr(10))
    ['x', '=', '1', 'NEWLINE']
    """
    tokens: list[str] = []
    line: list[tuple[int, str]] = []  # kind and text of the tokens of the current logical line
    for kind, text in _merged(source):
        if kind in (tokenize.INDENT, tokenize.DEDENT):
            tokens.append(tokenize.tok_name[kind])
        elif kind == tokenize.NEWLINE:
            if any(part != tokenize.STRING for part, _ in line):
                tokens += [*(word for _, word in line), "NEWLINE"]
            line = []
        else:
            line.append((kind, text))
    return tokens


def _merged(source: str) -> Iterator[tuple[int, str]]:
    """Yield kind and text of all tokens except comments and blank lines. An f-string is one STRING, with its source text."""
    lines = source.splitlines(keepends=True)
    depth, start = 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == FSTRING_START:
            depth += 1
            if depth == 1:
                start = token.start
        elif token.type == FSTRING_END:
            depth -= 1
            if depth == 0:
                yield tokenize.STRING, _between(lines, start, token.end)
        elif depth == 0 and token.type not in SKIPPED:
            yield token.type, token.string


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """Return the text from one (line, column) to another; lines count from 1."""
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    middle = lines[start[0] : end[0] - 1]
    return "".join([lines[start[0] - 1][start[1] :], *middle, lines[end[0] - 1][: end[1]]])
