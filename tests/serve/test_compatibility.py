"""Requests as OpenAI's clients and their kin send them: what has no effect here is accepted with a warning."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve.settings import ServeSettings
from speech.errors import UsageError
from tests.pipelines.jobs import scripted_engine
from tests.serve.direct import CALL, MODEL, client_of, post

URL = "/v1/audio/transcriptions"
SITE = "https://calls.example.org"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(scripted_engine()) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"chunking_strategy": "auto"}, "chunking_strategy"),
        ({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.4"}, "chunking_strategy"),
        ({"user": "someone", "seed": "7"}, "seed"),
        ({"top_p": "0.9", "frequency_penalty": "1"}, "top_p"),
        ({"temperature": "0.2"}, "temperature"),
        ({"language": "en-US"}, "language"),
        ({"language": "en_gb"}, "language"),
        ({"prompt": "The speaker is tired."}, "prompt"),
    ],
)
def test_fields_without_effect_are_accepted_with_a_warning(
    client: TestClient, fields: dict[str, Any], named: str
) -> None:
    plain = post(client).json()
    for response_format in ("json", "verbose_json"):
        answer = post(client, response_format=response_format, **fields)
        assert answer.json()["text"] == plain["text"]
        assert named in answer.json()["warning"]
        assert answer.headers["x-rayscribe-warning"] == answer.json()["warning"]
    others: tuple[dict[str, Any], ...] = ({"response_format": "srt"}, {"stream": "true"})
    for further in others:
        answer = post(client, **further, **fields)
        assert answer.status_code == 200
        assert named in answer.headers["x-rayscribe-warning"]


def test_empty_fields_count_as_absent(client: TestClient) -> None:
    names = ("language", "prompt", "response_format", "temperature", "stream", "timestamp_granularities[]", "include[]")
    empty: dict[str, Any] = dict.fromkeys(names, "") | {"keywords[]": "", "target_language": " "}
    answer = post(client, **empty)
    assert answer.json() == post(client).json()
    assert "x-rayscribe-warning" not in answer.headers
    assert post(client, model="").json()["error"]["code"] == "bad_field"


@pytest.mark.parametrize(
    "fields",
    [
        {"langauge": "de"},
        {"language[]": "de"},
        {"response_format": "diarized_json"},
        {"known_speaker_names[]": "agent"},
        {"task": "translate"},
        {"warnings": "none"},
        {"language": "tlh-US"},
    ],
)
def test_fields_whose_loss_would_change_the_answer_are_refused(client: TestClient, fields: dict[str, Any]) -> None:
    answer = post(client, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("bad_field", "unsupported_language")


@pytest.mark.parametrize(
    "disposition", ['name="file"', 'name="file"; filename=""', "name=file; filename*=utf-8''a%20b"]
)
def test_a_file_needs_no_name(client: TestClient, disposition: str) -> None:
    head = f"--b\r\ncontent-disposition: form-data; {disposition}\r\ncontent-type: audio/wav\r\n\r\n".encode()
    model = f'\r\n--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n{MODEL}\r\n--b--\r\n'.encode()
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post(URL, content=head + CALL + model, headers=headers)
    assert answer.json() == post(client).json()


def test_a_trailing_slash_makes_no_difference(client: TestClient) -> None:
    assert post(client, "transcriptions/").json() == post(client).json()
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
    assert client.get(f"/v1/models/{MODEL}/").json()["id"] == MODEL


def test_head_answers_as_get_without_a_body(client: TestClient) -> None:
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/models/other").status_code == 404


def test_live_settings_without_effect_are_named(client: TestClient) -> None:
    with client.websocket_connect("ws://localhost:8000/v1/realtime") as session:
        session.receive_json()
        transcription = {"language": "en-US", "prompt": "Be nice."}
        session.send_json({"type": "session.update", "session": {"audio": {"input": {"transcription": transcription}}}})
        updated = session.receive_json()
        assert updated["type"] == "session.updated"
        assert "language" in updated["warning"]
        assert "prompt" in updated["warning"]


def preflight(client: TestClient, origin: str) -> Any:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    return client.options(URL, headers={"origin": origin, **asked})


def test_cors_is_for_the_configured_origins_only(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\n")
    with client_of(scripted_engine(), api_keys=str(tmp_path / "keys"), cors_origins=f"{SITE}, https://b.org") as client:
        allowed = preflight(client, SITE)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == SITE
        assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
        assert "access-control-allow-origin" not in preflight(client, "https://example.org").headers
        refused = client.get("/v1/models", headers={"origin": SITE})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == SITE  # so that a page can read the error


def test_without_keys_a_configured_origin_is_answered_and_no_other() -> None:
    with client_of(scripted_engine(), cors_origins=SITE) as client:
        assert client.get("/v1/models", headers={"origin": SITE}).status_code == 200
        assert client.get("/v1/models", headers={"origin": "https://example.org"}).status_code == 403
    with pytest.raises(UsageError, match="api-keys"):
        ServeSettings.from_settings({"model": MODEL, "cors_origins": "*"})


def test_browsers_may_not_guess_types_or_frame_the_page(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/v1/models"), client.get("/v1/nothing"), post(client)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
