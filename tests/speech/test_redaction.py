"""Credentials are removed from URIs."""

import json

import pytest

from speech.redaction import redact_presigned, redact_uri


@pytest.mark.parametrize(
    ("uri", "redacted"),
    [
        ("https://bob:sesame@host/a.wav?token=sesame#x", "https://host/a.wav"),
        ("ftp://bob:sesame@host/a.wav", "ftp://host/a.wav"),
        ("s3://bucket/what?.wav", "s3://bucket/what?.wav"),
        *[(f"{scheme}://calls@acme.dfs.core.windows.net/a.wav",) * 2 for scheme in ("abfs", "abfss", "az")],
        ("/data/a@b?.wav", "/data/a@b?.wav"),
    ],
)
def test_credentials_are_removed(uri: str, redacted: str) -> None:
    assert redact_uri(uri) == redacted


@pytest.mark.parametrize(
    "link",
    [
        "https://b.s3.amazonaws.com/a.wav?X-Amz-Credential=c&X-Amz-Signature=sesame",
        "https://b.s3.amazonaws.com/a.wav?AWSAccessKeyId=c&Signature=sesame&Expires=1",
        "https://storage.googleapis.com/b/a.wav?x-goog-signature=sesame",
        "https://a.blob.core.windows.net/b/a.wav?sv=2024&sig=sesame",
    ],
)
def test_presigned_links_in_text_lose_their_query(link: str) -> None:
    text = json.dumps({"link": link, "note": f'see "{link}" and https://host/a?id=1', "n": 1})
    redacted = redact_presigned(text)
    assert "sesame" not in redacted
    assert json.loads(redacted)["link"] == link.partition("?")[0]
    assert "https://host/a?id=1" in redacted
    assert redact_presigned("https://host/a?design=1&signal=2") == "https://host/a?design=1&signal=2"
