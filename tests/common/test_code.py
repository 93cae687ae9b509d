"""A fingerprint of code changes only with what the code does, and is the same on all supported versions of Python."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.code import code_fingerprint, code_tokens, forget, python_files, with_siblings
from common.errors import UserError

ROOT = Path(__file__).parents[2]

SAME = {
    "a comment": ("x = 1\n", "x = 1  # one\n"),
    "a comment on a line of its own": ("x = 1\n", "# one\nx = 1\n"),
    "blank lines": ("x = 1\ny = 2\n", "x = 1\n\n\ny = 2\n"),
    "spaces": ("x = f(1, 2)\n", "x=f( 1,2 )\n"),
    "a module's docstring": ("x = 1\n", '"""What it is."""\nx = 1\n'),
    "a function's docstring": ("def f():\n    return 1\n", 'def f():\n    """Return one."""\n    return 1\n'),
    "a raw docstring": ("def f():\n    return 1\n", 'def f():\n    r"""Return \\one."""\n    return 1\n'),
    "a docstring of two parts": ("def f():\n    return 1\n", "def f():\n    \"Return \"  'one.'\n    return 1\n"),
    "another docstring": ('class A:\n    """One."""\n', 'class A:\n    """Two,\n    in lines.\n    """\n'),
    "a string after a field": ("class A:\n    x: int\n", 'class A:\n    x: int\n    """About x."""\n'),
    "a wider indent": ("if x:\n    y = 1\n", "if x:\n        y = 1\n"),
    "a call over several lines": ("f(1, 2)\n", "f(\n    1, 2\n)\n"),
    "no newline at the end": ("x = 1\n", "x = 1"),
}
OTHER = {
    "a number": ("x = 1\n", "x = 2\n"),
    "a string": ('x = "a"\n', 'x = "b"\n'),
    "a string that is returned": ('def f():\n    return "a"\n', 'def f():\n    return "b"\n'),
    "a string that is an argument": ('f("a")\n', 'f("b")\n'),
    "a first string that is used": ('"a".join(x)\n', '"b".join(x)\n'),
    "an f-string": ('x = f"{a}"\n', 'x = f"{b}"\n'),
    "spaces inside an f-string's text": ('x = f"a {b}"\n', 'x = f"a  {b}"\n'),
    "a nested f-string": ("x = f\"{f'{a}'}\"\n", "x = f\"{f'{b}'}\"\n"),
    "a hash inside a string": ('x = "a # b"\n', 'x = "a # c"\n'),
    "a block's end": ("if x:\n    a\n    b\n", "if x:\n    a\nb\n"),
    "two statements joined": ("a\nb\n", "a; b\n"),
    "an operator": ("x = a @ b\n", "x = a * b\n"),
}


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_run_is_not_counted(change: str) -> None:
    before, after = SAME[change]
    assert code_tokens(before) == code_tokens(after)


@pytest.mark.parametrize("change", OTHER)
def test_what_runs_is_counted(change: str) -> None:
    before, after = OTHER[change]
    assert code_tokens(before) != code_tokens(after)


CONSTRUCTS = '''"""Module."""
from __future__ import annotations
import a.b as c  # why
@decorator(1)
class A(B, metaclass=M):
    """Class."""
    x: int = 1_000
    def f[T](self, *args: T, key=lambda v: v ** 2, **rest) -> "str":
        """Docstring with {braces}."""
        with open(x) as file, y:
            text = f"{file!r:>{width}} {{literal}} {', '.join(args)}"
            long = (f"one {a} "
                    rf"two\\d {b}" "three")
        return f"""a
  {long = }
b"""
match command:
    case [x, *_] if x: pass
async def g():
    async for i in h(): yield i
if (n := 10) > 5: print(n, end="")
'''
EXPECTED_HEAD = ["from", "__future__", "import", "annotations", "NEWLINE", "import", "a", ".", "b", "as", "c", "NEWLINE"]


def test_the_tokens_of_every_construct() -> None:
    tokens = code_tokens(CONSTRUCTS)
    assert tokens[: len(EXPECTED_HEAD)] == EXPECTED_HEAD
    assert "f\"{file!r:>{width}} {{literal}} {', '.join(args)}\"" in tokens, "an f-string is one token, as it is written"
    assert 'f"""a\n  {long = }\nb"""' in tokens
    assert not any("Docstring" in token or "Class." in token or "why" in token for token in tokens)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_python_finds_the_same_tokens(version: str) -> None:
    """Compared with other installed versions of Python, because an f-string is one token or several, depending on the version."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"python{version} is not installed")
    program = "import sys; from common.code import code_tokens; print(ascii(code_tokens(sys.stdin.read())))"
    printed = subprocess.run(
        [python, "-c", program], input=CONSTRUCTS, capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    assert printed == ascii(code_tokens(CONSTRUCTS)), f"{version} against {sys.version}"


def test_a_directory_stands_for_its_files_and_their_names_count(tmp_path: Path) -> None:
    (tmp_path / "p/q").mkdir(parents=True)
    (tmp_path / "p/a.py").write_text("x = 1\n")
    (tmp_path / "p/q/b.py").write_text("y = 1\n")
    (tmp_path / "p/notes.txt").write_text("no code")
    assert python_files(tmp_path, ["p"]) == ["p/a.py", "p/q/b.py"]
    fingerprint = code_fingerprint(tmp_path, ["p"])
    renamed = tmp_path.with_name("renamed")
    shutil.copytree(tmp_path, renamed)
    assert code_fingerprint(renamed, ["p"]) == fingerprint
    other = tmp_path.with_name("other")
    shutil.copytree(tmp_path, other)
    (other / "p/a.py").rename(other / "p/c.py")
    assert code_fingerprint(other, ["p"]) != fingerprint


def test_hidden_files_do_not_count_and_half_written_ones_are_one_line(tmp_path: Path) -> None:
    """An editor may leave `.#a.py`, a link to nothing."""
    (tmp_path / "a.py").write_text("x = 1\n")
    before = code_fingerprint(tmp_path, ["."])
    (tmp_path / ".#a.py").symlink_to("nothing")
    forget()
    assert code_fingerprint(tmp_path, ["."]) == before
    for content in (b"x = (1\n", b"  x\n y\n", b"x = '\xff'\n"):
        (tmp_path / "a.py").write_bytes(content)
        forget()
        with pytest.raises(UserError, match=r"^a\.py is not valid Python \(.*\); mend it, then run the same command again$"):
            code_fingerprint(tmp_path, ["."])


def test_a_file_comes_with_the_modules_of_its_folder_that_it_imports(tmp_path: Path) -> None:
    texts = {
        "first": "from models.adapters.second import Second\nfrom models.core.adapter import Adapter",
        "second": "def later():\n    from models.adapters.third import Third",
        "third": "from models.adapters.first import First",
        "fourth": "",
    }
    for name, text in texts.items():
        (tmp_path / "models/adapters").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"models/adapters/{name}.py").write_text(text)
    adapters = "models/adapters"
    assert with_siblings(tmp_path, f"{adapters}/fourth.py") == (f"{adapters}/fourth.py",)
    assert with_siblings(tmp_path, f"{adapters}/first.py") == tuple(
        f"{adapters}/{name}.py" for name in ("first", "second", "third")
    )


def test_every_file_of_the_project_can_be_read() -> None:
    for file in python_files(ROOT, ["common", "models", "pipeline", "stages"]):
        assert code_tokens((ROOT / file).read_text()) or file.endswith("__init__.py"), file
