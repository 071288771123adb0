"""Authentication: API keys, and without them only this machine."""

import hashlib
import os
from pathlib import Path

import pytest

from serve.auth import ApiKeys
from serve.settings import ServeSettings
from speech.errors import UsageError
from tests.pipelines.jobs import scripted_engine
from tests.serve.direct import MODEL, client_of


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"# the bridge\nsk-plain\n\nsha256:{hashlib.sha256(b'sk-hashed').hexdigest()}\n")
    return file


def status(client: object, key: str | None, **headers: str) -> int:
    given = {} if key is None else {"authorization": f"Bearer {key}"}
    return client.get("/v1/models", headers=given | headers).status_code  # type: ignore[attr-defined]


def test_with_keys_only_requests_with_a_key_are_answered(keys: Path) -> None:
    with client_of(scripted_engine(), api_keys=str(keys), host="0.0.0.0", peer="203.0.113.7") as client:
        assert status(client, "sk-plain") == 200
        assert status(client, "sk-hashed") == 200
        for wrong in (None, "", "sk-other", "sk-plain2", "# the bridge"):
            assert status(client, wrong) == 401
        refused = client.post("/v1/audio/transcriptions", content=b"x" * 100)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"


def test_a_changed_key_file_takes_effect_at_once(keys: Path) -> None:
    known = ApiKeys(str(keys))
    assert known.contains("sk-plain")
    keys.write_text("sk-new\n")
    os.utime(keys, ns=(1, 1))
    assert known.contains("sk-new")
    assert not known.contains("sk-plain")


def test_keys_are_kept_as_hashes(keys: Path) -> None:
    assert "sk-plain" not in repr(vars(ApiKeys(str(keys))))


@pytest.mark.parametrize("content", [None, "", "# nothing\n", "sha256:abc\n", "sha256:zz\n"])
def test_a_key_file_without_a_valid_key_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match="key"):
        ApiKeys(str(file))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "calls.example.org"])
def test_without_keys_the_host_must_be_loopback(host: str) -> None:
    with pytest.raises(UsageError, match="api-keys"):
        ServeSettings.from_settings({"model": MODEL, "host": host})
    for own in ("127.0.0.1", "localhost", "::1"):
        ServeSettings.from_settings({"model": MODEL, "host": own})


def test_without_keys_only_local_requests_and_our_own_page_are_answered() -> None:
    with client_of(scripted_engine()) as client:
        assert status(client, None) == 200
        assert status(client, None, origin="http://localhost:8000") == 200
        assert status(client, None, origin="https://example.org") == 403
        assert status(client, None, origin="null") == 403
        assert status(client, None, host="example.org") == 403  # DNS rebinding
    with client_of(scripted_engine(), peer="203.0.113.7") as client:
        assert status(client, None) == 403


def test_no_cors_headers_by_default(keys: Path) -> None:
    with client_of(scripted_engine(), api_keys=str(keys)) as client:
        headers = {"origin": "https://example.org", "authorization": "Bearer sk-plain"}
        answer = client.get("/v1/models", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
