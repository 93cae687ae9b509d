"""Passwords and tokens stay out of every message."""

import re

# Names of options and of parameters of a URL that hold a secret.
SECRET = re.compile(
    r"secret|password|passwd|passphrase|token|signature|credential$|connection_string|auth_header|access_?key|account_?key|api_?key|^sig$|^key$",
    re.IGNORECASE,
)
# A password may hold `/` and `@`: it ends at the last `@` of the word. `://host:8080/a@b` has none.
PASSWORD = re.compile(r"(?<=://)([^\s/?#@:'\"`]*):(?!\d+/)[^\s'\"`]*@")
LONE_TOKEN = re.compile(r"(?<=://)[^\s/?#@:'\"`]{20,}@")  # longer than the name of a person or an account
PARAMETER = re.compile(r"([?&#;])([^\s=?&#;'\"`]+)=([^\s?&#;'\"`)]*)")


def masked(text: str) -> str:
    """Return `text` with `***` for the passwords and tokens of all URLs in it.

    >>> masked("cannot read https://ada:hunter2@example.org/x?token=abc&page=2")
    'cannot read https://ada:***@example.org/x?token=***&page=2'
    """
    if "://" not in text:
        return text
    text = LONE_TOKEN.sub("***@", PASSWORD.sub(r"\1:***@", text))
    return PARAMETER.sub(lambda found: f"{found[1]}{found[2]}={'***' if SECRET.search(found[2]) else found[3]}", text)


def has_secret(url: str) -> bool:
    """Whether a URL holds a password or a token."""
    return masked(url) != url
