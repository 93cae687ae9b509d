"""The form of the documentation: length, width, first lines, and links; and the examples in docstrings."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
WIDTH = 100  # columns
WORDS = 700  # of the README
EXAMPLES = [  # modules whose docstrings hold examples
    file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("common", "models", "pipeline")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]
EXPLICIT = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")


def prose(page: Path) -> list[str]:
    """Return the lines of a page that are not in a code block."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            lines.append(line)
    assert not inside, f"{page.name}: a code block is not closed"
    return lines


def words(lines: list[str]) -> int:
    """Return the number of words and numbers, without Markdown marks, comments and the addresses of links."""
    text = re.sub(r"<!--.*?-->", " ", "\n".join(lines), flags=re.DOTALL)
    return sum(bool(re.search(r"\w", word)) for word in re.sub(r"\]\([^)]*\)", "] ", text).split())


def anchors(page: Path) -> set[str]:
    """Return the valid targets of `#…`: GitHub's form of every heading, and explicit anchors."""
    found: set[str] = set()
    for line in prose(page):
        found |= set(EXPLICIT.findall(line))
        if heading := re.match(r"#+ (.+)", line):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def broken(page: Path) -> list[str]:
    """Return the relative links of a page that do not resolve."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(link)
    return found


def test_the_readme_is_short() -> None:
    assert words(prose(README)) <= WORDS


def test_the_readme_quotes_the_leaderboard_of_the_demo() -> None:
    quoted = README.read_text(encoding="utf-8").split("ends with verdict and leaderboard:", 1)[1].split("```")[1]
    lines = [line for line in quoted.split("\nDecision:")[0].splitlines() if line.strip() and line != "…"]
    assert len(lines) > 4
    assert set(lines) <= set((ROOT / "metrics/tables/leaderboard.txt").read_text(encoding="utf-8").splitlines())


def test_words_are_counted_outside_code_links_and_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n<!-- none\nnone -->\n| three | 4 |\n|---|---|\n```\nnone\n```\n[five six](none.md), - seven.\n")
    assert words(prose(page)) == 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_first_whom_it_serves(page: Path) -> None:
    title, first, *_ = (line for line in prose(page) if line.strip())
    assert title.startswith("# ")
    assert first.startswith("For ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_wrapped(page: Path) -> None:
    long = [line for line in prose(page) if len(line) > WIDTH and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_has_a_header_and_rows_of_equal_length(page: Path) -> None:
    """A blank line within a table makes the rows below it plain text."""
    for table in re.findall(r"(?:^\|.*\n)+", "\n".join(prose(page)) + "\n", re.MULTILINE):
        rows = table.splitlines()
        assert len(rows) > 2, f"no table: {rows[0]}"
        assert re.fullmatch(r"[|: -]+", rows[1]), f"no header: {rows[0]}"
        assert len({re.sub(r"`[^`]*`|\\\|", "", row).count("|") for row in rows}) == 1, rows[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    assert not broken(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title, with `code`\n[a](page.md) [b](none.md) [c](#a-title-with-code) [d](#none) [e](https://x.org/y)\n")
    assert broken(page) == ["none.md", "#none"]


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings_are_right(module: str) -> None:
    result = doctest.testmod(import_module(module))
    assert result.attempted
    assert not result.failed
