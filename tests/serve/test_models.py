"""Several models in one endpoint: the request's ``model`` picks, each has its own engines, Whisper tells languages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from serve.metrics import RequestMetrics
from serve.routes import http_app
from serve.service import TranscriptionService
from serve.settings import ServeSettings
from speech.engines.fake import FakeEngine, reply_with_options
from speech.errors import UsageError
from tests.pipelines.jobs import spoken
from tests.serve.conftest import MAX_WAIT_S, Served, served_scripted
from tests.serve.direct import CALL, DirectBackend, post

GRANITE, WHISPER = "ibm-granite/granite-4.0-1b-speech", "openai/whisper-small"
MODELS: list[dict[str, Any]] = [
    {"model": GRANITE, "names": "granite"},
    {"model": WHISPER, "names": ["whisper-1"], "min_engines": 0},
]


@pytest.fixture
def engines() -> dict[str, FakeEngine]:
    return {model: FakeEngine(reply_with_options, languages=spoken) for model in (GRANITE, WHISPER)}


@pytest.fixture
def client(engines: dict[str, FakeEngine]) -> TestClient:
    asked = ServeSettings.from_settings({"models": MODELS})
    backends = {
        rule.model: DirectBackend(engines[rule.model], model=rule.model, family=rule.family) for rule in asked.rules
    }
    app = http_app(asked, TranscriptionService(asked, backends, RequestMetrics()))
    return TestClient(app, base_url="http://localhost:8000", client=("127.0.0.1", 5000))


@pytest.mark.parametrize(("name", "model"), [("granite", GRANITE), (GRANITE, GRANITE), ("whisper-1", WHISPER)])
def test_the_request_picks_the_model(client: TestClient, engines: dict[str, FakeEngine], name: str, model: str) -> None:
    assert post(client, model=name, language="de").json()["text"].startswith("de")
    assert {asked for asked, engine in engines.items() if engine.requests} == {model}


def test_each_model_has_its_own_languages_and_options(client: TestClient) -> None:
    assert post(client, model="whisper-1", language="sv").status_code == 200
    refused = post(client, model="granite", language="sv").json()["error"]
    assert (refused["code"], "Granite" in refused["message"]) == ("unsupported_language", True)
    missing = post(client, model="whisper-2").json()["error"]
    assert (missing["code"], GRANITE in missing["message"]) == ("model_not_found", True)


def test_all_models_are_listed_with_what_they_can_do(client: TestClient) -> None:
    listed = {entry["id"]: entry["rayscribe"] for entry in client.get("/v1/models").json()["data"]}
    assert list(listed) == [GRANITE, "granite", WHISPER, "whisper-1"]
    assert {name: entry["detects_language"] for name, entry in listed.items()} == {
        GRANITE: False,
        "granite": False,
        WHISPER: True,
        "whisper-1": True,
    }
    assert "sv" in listed[WHISPER]["languages"]
    alias = client.get("/v1/models/whisper-1").json()
    assert (alias["root"], alias["rayscribe"]["family"]) == (WHISPER, "Whisper")


@pytest.mark.parametrize("asked", [{}, {"language": "auto"}])
def test_whisper_tells_the_language(client: TestClient, asked: dict[str, str]) -> None:
    fields: dict[str, Any] = {"model": "whisper-1", "keywords[]": "speaks de", **asked}
    answer = post(client, response_format="verbose_json", **fields).json()
    assert (answer["language"], answer["language_probability"]) == ("de", pytest.approx(0.95, abs=0.06))
    assert answer["text"].startswith("de speaks de")
    assert b"de speaks de" in post(client, stream="true", **fields).content
    translated = post(client, "translations", response_format="verbose_json", **fields).json()
    assert (translated["task"], translated["language"]) == ("translate", "en")


def test_granite_is_asked_for_english_where_no_language_is_given(client: TestClient) -> None:
    answer = post(client, model="granite", response_format="verbose_json").json()
    assert answer["language"] == "en"
    assert "language_probability" not in answer
    refused = post(client, model="granite", language="auto").json()["error"]
    assert (refused["code"], "cannot detect" in refused["message"]) == ("unsupported_language", True)


def test_a_live_session_may_name_any_model(client: TestClient) -> None:
    with client.websocket_connect("ws://localhost:8000/v1/realtime?intent=transcription&model=whisper-1") as session:
        assert session.receive_json()["type"] == "session.created"
        for language, kind in (("sv", "session.updated"), ("auto", "session.updated"), ("xx", "error")):
            transcription = {"model": "whisper-1", "language": language}
            update = {"audio": {"input": {"transcription": transcription}}}
            session.send_json({"type": "session.update", "session": update})
            assert session.receive_json()["type"] == kind


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"models": [{"model": GRANITE}, {"model": GRANITE}]}, GRANITE),
        ({"models": [{"model": GRANITE, "names": "a"}, {"model": WHISPER, "names": "a"}]}, "'a'"),
        ({"models": MODELS, "names": "whisper-1"}, "--names"),
        ({"models": MODELS, "model": GRANITE}, "--model"),
        ({"models": [{"names": "a"}]}, "names no model"),
        ({"models": [{"model": GRANITE, "dtype": "int4"}]}, "in 'models', dtype"),
        ({"models": [{"model": GRANITE, "langauges": "en"}]}, "in 'models', langauges"),
    ],
)
def test_entries_that_cannot_be_told_apart_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ServeSettings.from_settings(settings)


def test_entries_have_the_settings_beside_them_as_defaults() -> None:
    settings = ServeSettings.from_settings({"dtype": "float32", "models": [MODELS[0], MODELS[1] | {"dtype": "auto"}]})
    assert [rule.dtype for rule in settings.rules] == ["float32", "auto"]


@pytest.fixture(scope="module")
def endpoint(needs_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two models on Serve, on two places for engines; Whisper's is started by its first request."""
    folder = tmp_path_factory.mktemp("models")
    running = served_scripted(folder, f"models={json.dumps(MODELS)}", "engines=2", "min_engines=1")
    yield running
    running.stop()


def test_each_model_has_engines_of_its_own(endpoint: Served, tmp_path: Path) -> None:
    def ask(model: str, **fields: Any) -> dict[str, Any]:
        data = {"model": model, "response_format": "verbose_json", **fields}
        files = {"file": ("call.wav", CALL)}
        answer = httpx.post(f"{endpoint.url}/v1/audio/transcriptions", data=data, files=files, timeout=MAX_WAIT_S)
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    which = {"keywords": "which model"}
    assert set(ask("granite", **which)["text"].split()) == {GRANITE}
    assert set(ask("whisper-1", language="en", **which)["text"].split()) == {WHISPER}  # waits for its engine
    assert ask("whisper-1", keywords="speaks sv")["language"] == "sv"
