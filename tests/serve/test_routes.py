"""The endpoint's HTTP: answers, streams, errors."""

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from speech.engines.base import ClipRequest
from speech.engines.fake import FakeEngine
from speech.errors import EngineDied, EngineError
from speech.listener import Listener
from speech.recording import Recording
from tests.pipelines.jobs import scripted_engine
from tests.serve.direct import CALL, MODEL, client_of, post


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(scripted_engine(), max_upload_mib=1, max_audio_s=600) as client:
        yield client


def error_of(response: Any) -> tuple[int, str]:
    body = response.json()["error"]
    assert body["message"]
    assert body["type"] in ("invalid_request_error", "server_error")
    return response.status_code, body["code"]


def events_of(response: Any) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_transcript_in_each_format(client: TestClient) -> None:
    segments = len(Listener(clip_s=30.0).listen(Recording(id="x", audio="call.wav"), io.BytesIO(CALL)).clips)
    assert segments >= 4
    text = " ".join(["en Kuhn"] * segments)
    asked: dict[str, Any] = {"keywords[]": "Kuhn"}
    assert post(client, **asked).json()["text"] == text
    assert post(client, response_format="text", **asked).text == f"{text}\n"
    assert post(client, response_format="srt", **asked).text.count(" --> ") == segments
    assert post(client, response_format="vtt", **asked).text.startswith("WEBVTT\n\n00:00:0")
    verbose = post(client, response_format="verbose_json", **asked).json()
    assert verbose["text"] == text
    assert len(verbose["segments"]) == segments
    assert verbose["duration"] == pytest.approx(verbose["usage"]["seconds"])
    assert all(0 <= part["start"] < part["end"] <= verbose["duration"] for part in verbose["segments"])


def test_words_have_times_where_they_are_asked_for_and_in_subtitles(client: TestClient) -> None:
    named: dict[str, Any] = {"keywords[]": "Kuhn"}
    plain = post(client, response_format="verbose_json", **named).json()
    assert "words" not in plain
    asked = named | {"timestamp_granularities[]": "word"}
    verbose = post(client, response_format="verbose_json", **asked).json()
    assert [word["word"] for word in verbose["words"]] == verbose["text"].split()
    assert {word["probability"] for word in verbose["words"]} == {0.9}
    ends = sorted(word["end"] for word in verbose["words"])
    assert ends == sorted({*ends})
    # The fake engine's words take half a clip each: a cue of both, or one each where that is longer than a cue may be.
    cues = post(client, response_format="srt", **named).text
    assert cues.count("en") == cues.count("Kuhn") == len(verbose["segments"])


def test_keywords_may_be_a_list_one_field_or_in_the_prompt(client: TestClient) -> None:
    asked: list[dict[str, Any]] = [
        {"keywords[]": ["Kuhn", "van der Berg"]},
        {"keywords": "Kuhn, van der Berg"},
        {"prompt": "Keywords: Kuhn, van der Berg."},
        {"keywords[]": "Kuhn", "prompt": "keywords: van der Berg"},
    ]
    assert len({post(client, **fields).json()["text"] for fields in asked}) == 1
    assert post(client, **asked[0]).json()["text"].startswith("en Kuhn van der Berg")


def test_a_stream_is_the_same_text_in_parts(client: TestClient) -> None:
    whole = post(client, response_format="verbose_json").json()
    *deltas, done = events_of(post(client, stream="true"))
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert done["text"] == whole["text"] == "".join(event["delta"] for event in deltas)
    assert done["duration"] == whole["duration"]
    assert done["usage"]["output_tokens"] == 2 * len(deltas)
    for event, segment in zip(deltas, whole["segments"], strict=True):
        assert event["segment"] == {name: segment[name] for name in ("channel", "speaker", "start", "end", "text")}


def test_translations_need_a_target_language(client: TestClient) -> None:
    assert post(client, "translations", language="de").json()["text"]
    answer = post(client, "translations", language="en", target_language="fr", response_format="verbose_json").json()
    assert (answer["task"], answer["language"]) == ("translate", "fr")
    assert error_of(post(client, "translations")) == (400, "unsupported_task")  # no target for English


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "gpt-9"}, (404, "model_not_found")),
        ({"language": "xx"}, (400, "unsupported_language")),
        ({"keywords[]": "a<|b"}, (400, "bad_keywords")),
        ({"response_format": "docx"}, (400, "bad_field")),
        ({"temperature": "hot"}, (400, "bad_field")),
        ({"langauge": "de"}, (400, "bad_field")),
        ({"language": ["de", "en"]}, (400, "bad_field")),
        ({"include[]": "logprobs"}, (400, "bad_field")),
        ({"target_language": "fr"}, (400, "unsupported_task")),
        ({"punctuation": "true"}, (400, "unsupported_option")),
        ({"timestamp_granularities[]": "segment"}, (400, "unsupported_option")),
        ({"stream": "true", "response_format": "srt"}, (400, "unsupported_option")),
        ({"channels": "split", "speakers[]": ["agent", "customer", "judge"]}, (422, "bad_channel")),
        ({"keywords[]": "refuse me"}, (500, "engine_refused")),
        ({"keywords[]": "break me"}, (500, "internal")),
    ],
)
def test_unsupported_requests_are_refused_with_a_code(
    client: TestClient, fields: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert error_of(post(client, **fields)) == expected


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (b"", (422, "empty")),
        (b"not audio at all\n" * 100, (422, "unreadable")),
        (CALL[:3000], (422, "truncated")),
        (b"x" * ((1 << 20) + 1), (413, "too_large")),
    ],
)
def test_bad_audio_is_refused_with_a_code(client: TestClient, audio: bytes, expected: tuple[int, str]) -> None:
    assert error_of(post(client, audio=audio)) == expected


def test_errors_before_the_first_text_of_a_stream_have_a_status(client: TestClient) -> None:
    assert error_of(post(client, stream="true", audio=b"")) == (422, "empty")
    asked: dict[str, Any] = {"stream": "true", "keywords[]": "refuse me"}
    assert error_of(post(client, **asked)) == (500, "engine_refused")


def test_a_body_over_the_limit_is_refused_before_it_is_received(client: TestClient) -> None:
    def body() -> Iterator[bytes]:
        yield from [b"x" * (1 << 20)] * 3

    form = {"content-type": "multipart/form-data; boundary=b"}
    announced = client.post("/v1/audio/transcriptions", content=b"", headers=form | {"content-length": str(1 << 30)})
    assert error_of(announced) == (413, "too_large")
    assert error_of(client.post("/v1/audio/transcriptions", content=body(), headers=form)) == (413, "too_large")


def test_malformed_forms_are_refused(client: TestClient) -> None:
    url = "/v1/audio/transcriptions"
    assert error_of(client.post(url, json={"file": "https://example.org/a.wav"})) == (415, "not_multipart")
    form = {"content-type": "multipart/form-data; boundary=b"}
    assert error_of(client.post(url, content=b"--nonsense", headers=form)) == (400, "bad_form")
    assert error_of(client.post(url, files={"other": b"x"}, data={"model": MODEL})) == (400, "bad_form")
    assert error_of(client.post(url, files={"file": b"x"})) == (400, "bad_field")  # no model
    many = {"model": MODEL, "keywords[]": [f"word {number}" for number in range(400)]}
    assert error_of(client.post(url, files={"file": b"x"}, data=many)) == (400, "bad_form")


@pytest.mark.parametrize(
    ("charset", "status"), [("UTF-8", 200), ("unicode_escape", 400), ("undefined", 400), ("idna", 400)]
)
def test_a_form_is_in_utf_8(client: TestClient, charset: str, status: int) -> None:
    """Some of Python's codecs raise errors of their own, and some make text that no answer can hold."""
    fields = {"model": MODEL, "response_format": "verbose_json", "speakers": r"\ud800"}
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}' for name, value in fields.items()]
    parts += ['Content-Disposition: form-data; name="file"\r\n\r\n']
    body = "".join(f"\r\n--b\r\n{part}" for part in parts).encode() + CALL + b"\r\n--b--\r\n"
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    response = client.post("/v1/audio/transcriptions", content=body, headers={"content-type": kind})
    assert response.status_code == status
    assert status == 200 or error_of(response)[1] == "bad_form"


def test_a_recording_that_is_too_long_is_413() -> None:
    with client_of(scripted_engine(), max_audio_s=1.0) as client:
        assert error_of(post(client)) == (413, "too_long")


def test_models_are_listed_with_capabilities() -> None:
    with client_of(scripted_engine(), names="whisper-1, calls") as client:
        listed = client.get("/v1/models").json()["data"]
        assert [entry["id"] for entry in listed] == [MODEL, "whisper-1", "calls"]
        abilities = client.get(f"/v1/models/{MODEL}").json()["rayscribe"]
        assert "de" in abilities["languages"]
        assert ["de", "en"] in abilities["translations"]
        assert abilities["capabilities"] == ["keywords", "word_timestamps"]
        assert error_of(client.get("/v1/models/other")) == (404, "model_not_found")
        assert post(client, model="whisper-1").status_code == 200


def test_errors_of_paths_and_methods_have_openais_shape(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing")) == (404, "not_found")
    for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
        assert client.request(method, "/nothing").status_code == 404
    for method in ("GET", "DELETE", "OPTIONS"):
        refused = client.request(method, "/v1/audio/transcriptions")
        assert error_of(refused) == (405, "method_not_allowed")
        assert refused.headers["allow"] == "POST"
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/", "/app.js"):
        refused = client.post(path)
        assert error_of(refused) == (405, "method_not_allowed")
        assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_the_description_names_every_field_and_no_other_host(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    form = described["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert {"file", "model", "keywords[]", "response_format"} <= form["schema"]["properties"].keys()
    assert client.get("/docs").status_code == 404  # it would load scripts from another host


def test_speakers_are_named_by_channel(client: TestClient) -> None:
    named: dict[str, Any] = {"speakers[]": ["agent", "customer <1>"]}
    segments = post(client, response_format="verbose_json", **named).json()["segments"]
    assert {(part["channel"], part["speaker"]) for part in segments} == {(0, "agent"), (1, "customer <1>")}
    assert "\nagent: en" in post(client, response_format="srt", **named).text
    assert "<v customer &lt;1&gt;>en" in post(client, response_format="vtt", **named).text
    assert "\nChannel 2: en" in post(client, response_format="srt").text
    mixed = post(client, response_format="verbose_json", channels="mix").json()
    assert mixed["channels"] == 1


def failing_engine(error: Exception) -> FakeEngine:
    """Decodes its first clip and fails on the others."""
    decoded = itertools.count()

    async def fail(clip: ClipRequest) -> None:
        if next(decoded):
            raise error

    return FakeEngine(before=fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("engine_refused", "too much"), "engine_refused"),
        (EngineDied("engine_died", "gone"), "engine_died"),
        (ZeroDivisionError(), "internal"),
    ],
)
def test_an_error_in_the_middle_of_a_stream_is_its_last_event(error: Exception, code: str) -> None:
    with client_of(failing_engine(error)) as client:
        first, *_, last = events_of(post(client, stream="true"))
        assert first["type"] == "transcript.text.delta"
        assert last["error"]["code"] == code


def test_a_dead_engine_is_503_with_retry_after() -> None:
    engine = failing_engine(EngineDied("engine_died", "gone"))
    with client_of(engine) as client:
        response = post(client)
        assert error_of(response) == (503, "engine_died")
        assert int(response.headers["retry-after"]) > 0
