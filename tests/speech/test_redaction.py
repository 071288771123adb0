"""Credentials are removed from URIs."""

import pytest

from speech.redaction import redact_uri


@pytest.mark.parametrize(
    ("uri", "redacted"),
    [
        ("https://bob:sesame@host/a.wav?token=sesame#x", "https://host/a.wav"),
        ("ftp://bob:sesame@host/a.wav", "ftp://host/a.wav"),
        ("s3://bucket/what?.wav", "s3://bucket/what?.wav"),
        ("/data/a@b?.wav", "/data/a@b?.wav"),
    ],
)
def test_credentials_are_removed(uri: str, redacted: str) -> None:
    assert redact_uri(uri) == redacted
