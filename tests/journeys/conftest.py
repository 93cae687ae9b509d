"""A team: a bare git repository, a shared folder as DVC remote, and ada, who has embedded and pushed; built once per session."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clone import copy_repository, write_params
from tests.guide import Team


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("journeys"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Team:
    """The team after ada has followed the guide's first two sections, so that everything is on the remote."""
    base = tmp_path_factory.mktemp("team")
    origin = base / "spectran.git"
    team = Team(base, {"git@git.example.org:team/spectran.git": str(origin), "/mnt/team": str(base / "mnt")})
    root = base / "ada" / "spectran"
    params = copy_repository(root)
    # Enough items for 256 singular values; the best dimension shows in a few epochs.
    params["sources"]["demo"] = {"kind": "demo", "seed": 0, "items": 420, "users": 360}
    write_params(root, params)
    ada = team.member("ada")
    ada.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    ada.run("git", "init", "--quiet", "--initial-branch=main")
    ada.run("git", "remote", "add", "origin", str(origin))
    ada.commit()
    ada.run("git", "push", "--quiet", "--set-upstream", "origin", "main")
    team.follow("A remote for the team")
    team.follow("One member embeds and pushes")
    return team


@pytest.fixture
def clone(shared: Team) -> Callable[[str], None]:
    """Give a member a fresh clone without data, which is on the remote."""

    def fresh(who: str) -> None:
        shutil.rmtree(shared.base / who, ignore_errors=True)
        shared.member(who).run("git", "clone", "--quiet", str(shared.base / "spectran.git"), "spectran")

    return fresh


@pytest.fixture
def team(shared: Team, clone: Callable[[str], None]) -> Team:
    """The team, with a fresh clone for ben."""
    clone("ben")
    return shared
