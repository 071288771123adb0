"""What of a URI may be shown."""

import pytest

from speech.redaction import redact_uri


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://bob:sesame@host/a.wav?token=sesame#x", "https://host/a.wav"),
        ("ftp://bob:sesame@host/a.wav", "ftp://host/a.wav"),
        ("s3://bucket/what?.wav", "s3://bucket/what?.wav"),
        ("/data/a@b?.wav", "/data/a@b?.wav"),
    ],
)
def test_what_of_a_uri_may_be_shown(uri: str, shown: str) -> None:
    assert redact_uri(uri) == shown
