"""Who is let in: API keys, and without them this machine alone."""

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


def test_with_keys_only_their_holders_are_answered(keys: Path) -> None:
    with client_of(scripted_engine(), api_keys=str(keys), host="0.0.0.0", peer="203.0.113.7") as client:
        assert status(client, "sk-plain") == 200
        assert status(client, "sk-hashed") == 200
        for wrong in (None, "", "sk-other", "sk-plain2", "# the bridge"):
            assert status(client, wrong) == 401
        refused = client.post("/v1/audio/transcriptions", content=b"x" * 100)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"


def test_a_changed_file_of_keys_counts_at_once(keys: Path) -> None:
    known = ApiKeys(str(keys))
    assert known.contains("sk-plain")
    keys.write_text("sk-new\n")
    os.utime(keys, ns=(1, 1))
    assert known.contains("sk-new")
    assert not known.contains("sk-plain")


def test_keys_are_held_as_hashes(keys: Path) -> None:
    assert "sk-plain" not in repr(vars(ApiKeys(str(keys))))


@pytest.mark.parametrize("content", [None, "", "# nothing\n", "sha256:abc\n", "sha256:zz\n"])
def test_a_file_that_gives_no_key_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match="key"):
        ApiKeys(str(file))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "calls.example.org"])
def test_without_keys_nothing_but_localhost_is_listened_on(host: str) -> None:
    with pytest.raises(UsageError, match="api-keys"):
        ServeSettings.from_settings({"model": MODEL, "host": host})
    for own in ("127.0.0.1", "localhost", "::1"):
        ServeSettings.from_settings({"model": MODEL, "host": own})


def test_without_keys_only_this_machine_is_answered_and_no_page_but_ours() -> None:
    with client_of(scripted_engine()) as client:
        assert status(client, None) == 200
        assert status(client, None, origin="http://localhost:8000") == 200
        assert status(client, None, origin="https://example.org") == 403
        assert status(client, None, origin="null") == 403
        assert status(client, None, host="example.org") == 403  # a name of theirs that leads here
    with client_of(scripted_engine(), peer="203.0.113.7") as client:
        assert status(client, None) == 403


def test_no_answer_is_readable_to_pages_of_other_sites(keys: Path) -> None:
    with client_of(scripted_engine(), api_keys=str(keys)) as client:
        headers = {"origin": "https://example.org", "authorization": "Bearer sk-plain"}
        answer = client.get("/v1/models", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
