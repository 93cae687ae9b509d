"""Runs the transcripts of docs/teamwork.md, and compares their output with what the guide shows.

A transcript is a ```console block. `ada$ command` is typed by ada; the lines below it are printed, `…` stands for any lines.
Numbers, hashes, spaces and rules of tables may differ. A command that prints `ERROR:` or `error:` must fail.
"""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.clone import ROOT, Project

GUIDE = ROOT / "docs/teamwork.md"
PROMPT = re.compile(r"^(\w+)\$ (.+)$")


@dataclass
class Step:
    """A command, the member who types it, and the output that the guide shows."""

    who: str
    command: str
    shown: list[str] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        return any(line.lower().startswith("error:") for line in self.shown)


def sections(path: Path = GUIDE) -> dict[str, list[Step]]:
    """Return the steps of every section with transcripts, by its heading."""
    found: dict[str, list[Step]] = {}
    heading, inside = "", False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```console"
        elif not inside and line.startswith("#"):
            heading = line.lstrip("# ")
        elif inside and (typed := PROMPT.match(line)):
            found.setdefault(heading, []).append(Step(*typed.groups()))
        elif inside:
            found[heading][-1].shown.append(line)
    return found


def masked(line: str) -> str:
    """Return a line without the parts that differ between machines and runs."""
    line = re.sub(r"\b[0-9a-f]{7,}(\.dir)?\b", "#", line)
    line = re.sub(r"-?\d+([.:,]\d+)*( [AP]M)?", "#", line)
    line = re.sub(r"# (second|minute|hour)s?\b", "# of time", line)  # a busy machine says minutes where another says seconds
    return re.sub(r"[\s|─—-]+", " ", line).strip()


def check(step: Step, printed: str) -> None:
    """Assert that every line of the guide is printed in that order. Rows of metrics may be in any order, as in DVC."""
    everywhere = [masked(part) for line in printed.splitlines() for part in line.split("\r")]
    lines = iter(everywhere)
    for line in step.shown:
        wanted = masked(line)
        if wanted not in ("", "…"):
            among = everywhere if wanted.startswith("metrics/") else lines
            assert any(wanted in found for found in among), f"{step.command}\ndoes not print, or not here:\n{line}\n{printed}"


class Team:
    """The members, each with a home directory and a checkout. `locations` maps the guide's paths to those of the test."""

    def __init__(self, base: Path, locations: dict[str, str]) -> None:
        self.base = base
        self.locations = locations
        self.transcript = ""

    def member(self, who: str) -> Project:
        """Return the project in which a member types: the checkout, or the home directory before there is one."""
        home = self.base / who
        home.mkdir(exist_ok=True)
        names = {
            f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER") for part, value in (("NAME", who), ("EMAIL", who))
        }
        checkout = home / "spectran"
        return Project(checkout if checkout.is_dir() else home, **names, HOME=str(home), COLUMNS="400", DVC_PAGER="cat")

    def follow(self, section: str) -> list[str]:
        """Run the commands of a section; return their outputs."""
        return [self.type(step) for step in sections()[section]]

    def type(self, step: Step) -> str:
        command = step.command
        for name, location in self.locations.items():
            command = command.replace(name, location)
        member = self.member(step.who)
        printed = member.run("bash", "-c", command, fails=step.fails)
        self.transcript += f"{step.who}$ {step.command}\n{printed}"
        if step.command.startswith("dvc queue start"):
            while re.search(r"Queued|Running", member.run("dvc", "queue", "status")):
                time.sleep(1)
        for name, location in (*self.locations.items(), ("/home", str(self.base))):
            printed = printed.replace(location, name)
        check(step, printed)
        return printed
