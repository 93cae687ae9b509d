"""The messages for damaged data; no damaged data is used silently."""

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clone import Project
from tests.guide import Team, sections

pytestmark = pytest.mark.xdist_group("team")  # which is built once in a process

WEIGHTS = "data/checkpoints/selected/model.safetensors"
SPECTRUM = "data/spectrum/demo/minilm"


def stored(store: Path, artifact: Path) -> Path:
    """Return the object with a file's bytes, in a cache or on a remote."""
    import hashlib

    digest = hashlib.md5(artifact.read_bytes()).hexdigest()
    return store / "files/md5" / digest[:2] / digest[2:]


def damage(path: Path) -> None:
    """Flip bytes as a failing disk does; size and permissions stay the same."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(4000)
        file.write(b"damaged!")
    path.chmod(mode)


@pytest.fixture
def remote(team: Team, tmp_path: Path) -> Path:
    """A copy of the remote for ben, which a test may damage."""
    copy = tmp_path / "remote"
    shutil.copytree(team.base / "mnt/spectran", copy)
    team.member("ben").run("dvc", "remote", "modify", "--local", "team", "url", str(copy))
    return copy


def unharmed(checkout: Project, metrics: dict) -> None:
    assert checkout.metrics() == metrics, "figures were made from something wrong"


@pytest.mark.slow
def test_a_damaged_object_in_the_cache(team: Team) -> None:
    ben, ada = team.member("ben"), team.member("ada")
    ben.run("dvc", "exp", "run", "evaluate", "--pull", "--allow-missing", "-S", "dim=8")
    before = ben.metrics()
    damage(stored(ben.root / ".dvc/cache", ada.root / SPECTRUM / "V.npy"))
    wrong, *mending = sections()["A damaged object in the cache"]
    printed = team.type(wrong)
    assert "V.npy is damaged" in printed
    assert "Traceback" not in printed
    unharmed(ben, before)
    for step in mending:
        printed = team.type(step)
    assert ben.ran(printed) == ["train", "evaluate"]
    assert (ben.root / SPECTRUM / "V.npy").read_bytes() == (ada.root / SPECTRUM / "V.npy").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("verify", ["true", "false"])
def test_a_damaged_object_on_the_remote(team: Team, remote: Path, verify: str) -> None:
    """With `verify`, DVC refuses a damaged object; without it, the stage that reads it does."""
    ben = team.member("ben")
    before = ben.metrics()
    damage(stored(remote, team.member("ada").root / SPECTRUM / "V.npy"))
    ben.run("dvc", "remote", "modify", "--local", "team", "verify", verify)
    (step,) = sections()["A damaged object on the remote"]
    if verify == "true":
        team.type(step)
    else:
        assert "V.npy is damaged" in ben.run("bash", "-c", step.command, fails=True)
    unharmed(ben, before)


@pytest.mark.slow
def test_a_push_that_was_cut_off(team: Team) -> None:
    ben, ada = team.member("ben"), team.member("ada")
    before = ben.metrics()
    remote = team.base / "mnt/spectran"
    lost = stored(remote, ada.root / SPECTRUM / "V.npy")
    lost.unlink()
    (remote / ada.listing(SPECTRUM)).unlink()  # a directory's list is pushed last
    wrong, push, again = sections()["A push that was cut off"]
    team.type(wrong)
    unharmed(ben, before)
    team.type(push)
    assert lost.is_file()
    assert ben.ran(team.type(again))[-1] == "evaluate"


@pytest.mark.slow
def test_a_remote_that_is_down(team: Team, remote: Path) -> None:
    ben = team.member("ben")
    before = ben.metrics()
    shutil.rmtree(remote)
    printed = team.follow("A remote that is down")
    assert "Running stage 'data/" not in printed[0], "what the remote holds was made again"
    unharmed(ben, before)
    assert "does not answer" in ben.run("python", "-m", "stages.doctor")


@pytest.mark.slow
def test_two_push_at_once(team: Team, clone: Callable[[str], None]) -> None:
    """Objects are named by content and only added; git rejects the second push, whose author merges and runs again."""
    clone("carl")
    dims = {"ben": "8", "carl": "12"}
    for who, dim in dims.items():
        team.member(who).run("dvc", "exp", "run", "evaluate", "--pull", "--allow-missing", "-S", f"dim={dim}")
    pushed = [stored(team.base / "mnt/spectran", team.member(who).root / WEIGHTS) for who in dims]
    carl = team.member("carl")
    carl.run("git", "commit", "--quiet", "--all", "--message", "SpecTran, 12 dimensions")
    carl.run("dvc", "push", "--run-cache")
    carl.run("git", "push", "--quiet", "origin", "HEAD:main")
    try:
        team.follow("Two push at once")
        ben = team.member("ben")
        assert "dim: 12" in (ben.root / "params.yaml").read_text()
        assert ben.metrics() == carl.metrics()
        assert (ben.root / WEIGHTS).read_bytes() == (carl.root / WEIGHTS).read_bytes()
        assert all(path.is_file() for path in pushed), "both pushes are whole"
    finally:
        team.member("ada").run("git", "push", "--quiet", "--force", "origin", "main")


@pytest.mark.slow
def test_what_can_be_deleted(team: Team) -> None:
    steps = sections()["What can be deleted"]
    ben = team.member("ben")
    weights, figures = {}, {}
    for step in steps:
        team.type(step)
        for name in ("kept", "dropped"):
            if f"--name {name} " in step.command:
                weights[name] = stored(ben.root / ".dvc/cache", ben.root / WEIGHTS)
                assert weights[name].is_file()
                figures[name] = ben.metrics()
    assert weights["kept"].is_file()
    assert not weights["dropped"].is_file()
    ben.run("dvc", "exp", "apply", "kept", fails=True)  # of what is not here, as the guide says
    assert ben.metrics() == figures["kept"]
    assert (ben.root / WEIGHTS).read_bytes() == weights["kept"].read_bytes()
