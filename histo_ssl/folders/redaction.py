"""Keeps secrets out of everything that is written: logs, messages, provenance, W&B.

Credentials are refused where they come in (`has_credentials`), since status.csv has to keep addresses as they
are; `redact` is the second net, for what comes in another way.
"""

import logging
import os
import re
from typing import Any

STARS = "***"
# user:password@ of an address; a password may hold a slash, a port is not one
USER = re.compile(r"(?<=://)(?:[^\s/?#@:]*:(?!\d+(?:[/?#]|$))[^\s@]*|[^\s/?#@]*)@")
SECRET = r"(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|secret|token|passw(?:or)?d|pwd|jwt|credentials?)"
QUERY = re.compile(rf"([?&;][^=&\s]*?(?:{SECRET}|signature|sig)=)[^&\s#]+", re.IGNORECASE)
OWNED = rf"(?:(?:\w+_)?(?:wandb|access|auth|secret)_)?{SECRET}"  # class_token is no secret, auth_token is
ASSIGNMENT = re.compile(rf"((?:^|[\s.+]){OWNED}=)[^\s&]+", re.IGNORECASE)  # on a command line
SECRET_KEY = re.compile(rf"^{OWNED}$", re.IGNORECASE)  # of a configuration
SECRET_VARIABLE = re.compile(r"API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8  # of a variable's value: shorter ones could be any word


def has_credentials(text: str) -> bool:
    """Whether the text is an address with a user, a password, or a token in its query.

    >>> has_credentials("https://me:secret@host/a.svs"), has_credentials("https://host:8080/a@b.svs")
    (True, False)
    """
    return bool(USER.search(text) or ("://" in text and QUERY.search(text)))


def refuse_credentials(text: str, *, where: str) -> None:
    """Stop at an address with credentials.

    Raises:
        ValueError: says where it stands, without the credentials, and where they belong.
    """
    if has_credentials(text):
        raise ValueError(
            f"{where}: {redact(text)} holds credentials, and addresses are written into status.csv; keep "
            "them in the store's own configuration (~/.aws, ~/.config/fsspec/*.json) and leave them out here"
        )


def redact(text: str) -> str:
    """The text without credentials of addresses, `api_key=...`, and values of secret environment variables.

    >>> redact("s3://id:se/cret@bucket/a.svs https://host/b.svs?sig=abc&x=1 +logger.api_key=abc")
    's3://***@bucket/a.svs https://host/b.svs?sig=***&x=1 +logger.api_key=***'
    """
    for value in _secret_values():
        text = text.replace(value, STARS)
    text = USER.sub(f"{STARS}@", text)
    return ASSIGNMENT.sub(rf"\1{STARS}", QUERY.sub(rf"\1{STARS}", text))


def redacted(content: Any) -> Any:
    """Plain values of any depth with every text redacted, and every text under a key such as `api_key`."""
    if isinstance(content, dict):
        return {
            key: STARS if isinstance(value, str) and SECRET_KEY.search(str(key)) else redacted(value)
            for key, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [redacted(value) for value in content]
    return redact(content) if isinstance(content, str) else content


class RedactingFilter(logging.Filter):
    """Lets every record of a log pass, redacted."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record's message."""
        record.msg, record.args = redact(record.getMessage()), ()
        return True


def _secret_values() -> list[str]:
    named = ((name, value) for name, value in os.environ.items() if SECRET_VARIABLE.search(name))
    return sorted((value for _, value in named if len(value) >= SHORTEST), key=len, reverse=True)
