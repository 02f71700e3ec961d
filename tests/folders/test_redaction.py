"""No secret in what is written; and nothing else taken for one."""

import logging
import sys

import pytest

from histo_ssl.folders.provenance import provenance
from histo_ssl.folders.redaction import RedactingFilter, has_credentials, redact, redacted, refuse_credentials

WITH = [
    ("https://me:hunter22@host/a.svs", "https://***@host/a.svs"),
    ("https://hunter22@host/a.svs", "https://***@host/a.svs"),
    ("s3://key:hunter/22@bucket/a.svs", "s3://***@bucket/a.svs"),
    ("https://me:hunter22@host:8080/a.svs", "https://***@host:8080/a.svs"),
    ("https://h/a.svs?sv=1&sig=hunter22&se=2", "https://h/a.svs?sv=1&sig=***&se=2"),
    ("https://h/a.svs?api-key=hunter22", "https://h/a.svs?api-key=***"),
    ("https://h/a.svs?x-access-key-id=hunter22", "https://h/a.svs?x-access-key-id=***"),
    ("https://h/a.svs?u=me&pwd=hunter22&jwt=hunter33", "https://h/a.svs?u=me&pwd=***&jwt=***"),
    ("https://h/a.svs?X-Amz-Signature=hunter22", "https://h/a.svs?X-Amz-Signature=***"),
    ("https://h/a.svs?X-Amz-Security-Token=hunter22#x", "https://h/a.svs?X-Amz-Security-Token=***#x"),
    ("https://h/a.svs?access_token=hunter22", "https://h/a.svs?access_token=***"),
]
WITHOUT = [
    "https://host:8080/a@b.svs",
    "https://host/a@b.svs?x=1",
    "s3://bucket/slide@v2.svs",
    "/data/me:you@home/a.svs",
    "mail me@host",
    "https://h/a.svs?design=3&page=token",
]


@pytest.mark.parametrize(("text", "clean"), WITH)
def test_credentials_in_an_address_are_refused_and_starred(text: str, clean: str) -> None:
    assert has_credentials(text)
    assert redact(f"reading {text} failed") == f"reading {clean} failed"
    with pytest.raises(ValueError, match=r"^data\.root: .*holds credentials.*fsspec") as refused:
        refuse_credentials(text, where="data.root")
    assert "hunter" not in str(refused.value)


@pytest.mark.parametrize("text", WITHOUT)
def test_an_address_without_credentials_stays_as_it_is(text: str) -> None:
    assert not has_credentials(text)
    assert redact(text) == text


def test_values_of_secret_variables_are_starred_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_TOKEN", "a")  # any letter: too short to be looked for
    assert redact("W&B said: bad key 0123456789abcdef, a pity") == "W&B said: bad key ***, a pity"


def test_a_configuration_is_starred_by_its_keys_and_at_any_depth() -> None:
    config = {"logger": {"api_key": "hunter22", "hosts": ["https://u:hunter22@h/", 5]}, "pool": "token"}
    clean = {"logger": {"api_key": "***", "hosts": ["https://***@h/", 5]}, "pool": "token"}
    assert redacted(config) == clean
    assert redacted({"class_token": "cls", "n_tokens": 7}) == {"class_token": "cls", "n_tokens": 7}


def test_provenance_and_log_hold_no_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["histo_ssl", "data.root=https://u:hunter22@h/", "+logger.api_key=hunter22"]
    )
    made = provenance({"data": {"root": "https://u:hunter22@h/"}}, started=0.0)
    assert "hunter" not in str(made)
    assert made["command"] == ["histo_ssl", "data.root=https://***@h/", "+logger.api_key=***"]
    log = logging.getLogger("test_redaction")
    log.addFilter(RedactingFilter())
    log.warning("cannot read %s", "https://u:hunter22@h/a.svs")
    assert caplog.messages == ["cannot read https://***@h/a.svs"]
