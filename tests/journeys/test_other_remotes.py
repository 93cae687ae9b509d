"""The same journey over a real S3 server (moto) and a real OpenSSH server."""

import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guide import Team


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def s3(shared: Team) -> Iterator[None]:
    """A server with an empty bucket, in the place of the guide's S3 address."""
    pytest.importorskip("dvc_s3", reason="S3 is not installed: pip install '.[s3]'")
    server = pytest.importorskip("moto.server", reason="no S3 server: pip install 'moto[s3]' flask flask-cors")
    running = server.ThreadedMotoServer("127.0.0.1", port := free_port(), verbose=False)
    running.start()
    import boto3

    address = f"http://127.0.0.1:{port}"
    keys = {"aws_access_key_id": "ANEXAMPLE", "aws_secret_access_key": "anexample", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="spectran")
    shared.locations["https://s3.example.org"] = address
    yield
    running.stop()


@pytest.fixture
def ssh(shared: Team, tmp_path: Path) -> Iterator[None]:
    """An SSH server with its own keys for the current user, in the place of the guide's SSH address."""
    pytest.importorskip("dvc_ssh", reason="SSH is not installed: pip install '.[ssh]'")
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if sshd is None:
        pytest.skip("no SSH server: apt-get install openssh-server")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)
    port, log = free_port(), tmp_path / "log"
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (tmp_path / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    with log.open("w") as file:
        server = subprocess.Popen([sshd, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=file)
    try:
        for _ in range(100):
            if "listening" in log.read_text() or server.poll() is not None:
                break
            time.sleep(0.1)
        assert server.poll() is None, log.read_text()
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path / 'srv'}"
        shared.locations |= {"ssh://ada@box.example.org/srv/spectran": url, "~/.ssh/team": str(tmp_path / "user")}
        yield
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("server", "section"), [("s3", "S3"), pytest.param("ssh", "SSH", marks=pytest.mark.slow)])
def test_the_spectrum_travels_over(
    server: str, section: str, team: Team, clone: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(server)
    clone("carl")
    carl, ben = team.member("carl"), team.member("ben")
    shutil.copytree(team.member("ada").root / ".dvc/cache", carl.root / ".dvc/cache")
    team.follow(section)
    assert "remote" in carl.run("python", "-m", "stages.doctor")
    assert carl.run("python", "-m", "stages.doctor", "--secrets")
    for config in ("config", "config.local"):
        shutil.copyfile(carl.root / ".dvc" / config, ben.root / ".dvc" / config)
    ran = ben.run("dvc", "exp", "run", "evaluate", "--pull", "--allow-missing", "-S", "dim=8")
    assert ben.ran(ran) == ["validate", "train", "evaluate"]
    assert not (ben.root / "data/embeddings/demo/minilm").exists()
    answers = next(line for line in ben.run("python", "-m", "stages.doctor").splitlines() if line.startswith("remote"))
    assert answers.endswith(" answers")
