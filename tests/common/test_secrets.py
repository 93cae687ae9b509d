"""Passwords and tokens of URLs are masked in every message, and nothing else is changed."""

import pytest

from common.errors import UserError
from common.secrets import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ada:hunter2@example.org/x", "https://ada:***@example.org/x"),
        ("https://:hunter2@example.org", "https://:***@example.org"),
        ("ssh://ada:hun/ter2@example.org:22/srv", "ssh://ada:***@example.org:22/srv"),
        ("s3://key:hunter2@s3.example.org/b/k@v hunter", "s3://key:***@v hunter"),  # what follows may be part of a password
        ("https://ghp_0123456789abcdefhunter2@example.org/x", "https://***@example.org/x"),
        ("https://example.org/x?sig=hunter2&v=3", "https://example.org/x?sig=***&v=3"),
        ("https://example.org/x?v=3&X-Amz-Signature=hunter2.", "https://example.org/x?v=3&X-Amz-Signature=***"),
        ("https://example.org/x#access_token=hunter2", "https://example.org/x#access_token=***"),
        ("`http://a:hunter2@x` and 'http://b:hunter2@y'", "`http://a:***@x` and 'http://b:***@y'"),
        (
            "HTTPConnectionPool: url: http://x?api_key=hunter2 (Caused by)",
            "HTTPConnectionPool: url: http://x?api_key=*** (Caused by)",
        ),
    ],
)
def test_a_secret_is_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert "hunter2" not in str(UserError(text))


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org:8080/files/reviews_Toys_5.json.gz?version=3",
        "ssh://ada@example.org:2222/srv/spectran",
        "https://example.org/package@1.0/file",
        "http://127.0.0.1:39999/a@b",
        "params.yaml: token: expected a number, found 'a=b'",
        "no address at all: key=value, ada:x@y",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text
