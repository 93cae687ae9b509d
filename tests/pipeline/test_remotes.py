"""No secret reaches git by way of DVC's configuration."""

from pathlib import Path

import pytest

from common.errors import UserError
from pipeline.remotes import refuse_secrets

ROOT = Path(__file__).parents[2]
REMOTE = "['remote \"team\"']\n    url = {}\n"


def config(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config"
    file.write_text("[core]\n    remote = team\n" + text)
    return file


@pytest.mark.parametrize(
    "text",
    [
        REMOTE.format("https://ada:hunter2@example.org/spectran"),
        REMOTE.format("ssh://ada:hunter2@example.org/srv/spectran"),
        REMOTE.format("https://example.org/spectran?X-Amz-Signature=hunter2"),
        REMOTE.format("https://example.org/spectran?sv=2024&sig=hunter2"),
        REMOTE.format("s3://bucket/spectran") + "    endpointurl = https://key:hunter2@s3.example.org\n",
        *(
            REMOTE.format("s3://bucket/spectran") + f"    {option} = hunter2\n"
            for option in (
                "access_key_id",
                "secret_access_key",
                "session_token",
                "password",
                "passphrase",
                "connection_string",
                "account_key",
                "sas_token",
                "client_secret",
                "gdrive_client_secret",
                "custom_auth_header",
                "oss_key_secret",
            )
        ),
    ],
)
def test_a_secret_is_refused_in_one_line_that_does_not_repeat_it(tmp_path: Path, text: str) -> None:
    file = config(tmp_path, text)
    with pytest.raises(UserError) as refusal:
        refuse_secrets(file)
    line = str(refusal.value)
    assert "\n" not in line
    assert "hunter2" not in line
    assert str(file) in line
    assert "`dvc remote modify --local`" in line


@pytest.mark.parametrize(
    "text",
    [
        REMOTE.format("/mnt/team/spectran"),
        REMOTE.format("s3://bucket/spectran") + "    endpointurl = https://s3.example.org\n    profile = team\n",
        REMOTE.format("ssh://ada@example.org:2222/srv/spectran") + "    keyfile = ~/.ssh/team\n    ask_password = true\n",
        REMOTE.format("https://example.org/spectran?version=3") + "    verify = true\n    auth = basic\n    user = ada\n",
    ],
)
def test_what_names_a_place_or_a_person_passes(tmp_path: Path, text: str) -> None:
    refuse_secrets(config(tmp_path, text))


def test_this_repository_holds_none() -> None:
    refuse_secrets(ROOT / ".dvc/config")


def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no DVC configuration"):
        refuse_secrets(config(tmp_path, "['remote\n"))
