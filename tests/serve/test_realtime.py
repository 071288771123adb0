"""Live audio over the WebSocket, as a telephony bridge or OpenAI's client speaks it."""

import base64
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient, WebSocketDenialResponse, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from serve import live_session, session_language
from speech.engines.base import ClipRequest
from speech.engines.fake import FakeEngine, reply_with_options
from testing.synthetic_audio import sentence, silence
from tests.pipelines.jobs import scripted_engine
from tests.serve.direct import MODEL, client_of, post

WHISPER = "openai/whisper-small"
URL = "ws://localhost:8000/v1/realtime?intent=transcription"
PIECE = 1600  # bytes: a fifth of a second of G.711
SPOKEN = np.concatenate([silence(1), sentence("agent"), silence(1.5), sentence("customer"), silence(1.5)])
TRANSCRIPTION = "conversation.item.input_audio_transcription"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(scripted_engine()) as client:
        yield client


def ulaw(samples: np.ndarray = SPOKEN) -> list[bytes]:
    out = io.BytesIO()
    soundfile.write(out, samples, 8000, "ULAW", format="RAW")
    data = out.getvalue()
    return [data[start : start + PIECE] for start in range(0, len(data), PIECE)]


def configure(session: WebSocketTestSession, **input: Any) -> dict[str, Any]:
    asked = {"format": {"type": "audio/pcmu"}, **input}
    session.send_json({"type": "session.update", "session": {"type": "transcription", "audio": {"input": asked}}})
    answer: dict[str, Any] = session.receive_json()
    return answer


@contextmanager
def opened(client: TestClient, **input: Any) -> Iterator[WebSocketTestSession]:
    with client.websocket_connect(URL) as session:
        assert session.receive_json()["type"] == "session.created"
        assert configure(session, **input)["type"] == "session.updated"
        yield session


def append(session: WebSocketTestSession, pieces: list[bytes]) -> None:
    for piece in pieces:
        session.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(piece).decode()})


def until(session: WebSocketTestSession, type: str, count: int = 1) -> list[dict[str, Any]]:
    """Receives events up to the ``count``-th of a type."""
    events: list[dict[str, Any]] = []
    while sum(event["type"] == type for event in events) < count:
        events.append(session.receive_json())
    return events


def of_type(events: list[dict[str, Any]], type: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == type]


@pytest.mark.parametrize("binary", [False, True])
def test_each_utterance_is_an_item(client: TestClient, binary: bool) -> None:
    with opened(client, transcription={"model": MODEL, "language": "de", "keywords": ["Kuhn"]}) as session:
        if binary:
            for piece in ulaw():
                session.send_bytes(piece)
        else:
            append(session, ulaw())
        events = until(session, f"{TRANSCRIPTION}.completed", 2)
        started = of_type(events, "input_audio_buffer.speech_started")
        committed = of_type(events, "input_audio_buffer.committed")
        completed = of_type(events, f"{TRANSCRIPTION}.completed")
        items = [event["item_id"] for event in started]
        assert len(set(items)) == 2
        assert [event["item_id"] for event in committed] == items
        assert [event["item_id"] for event in completed] == items
        assert committed[1]["previous_item_id"] == items[0]
        assert [event["transcript"] for event in completed] == ["de Kuhn", "de Kuhn"]
        assert 500 < started[0]["audio_start_ms"] < 1100
        for item in items:
            deltas = [event["delta"] for event in of_type(events, f"{TRANSCRIPTION}.delta") if event["item_id"] == item]
            assert "".join(deltas) == "de Kuhn"


@pytest.mark.parametrize(
    ("second_is_german", "detection_s", "transcripts"),
    [
        (0.4, 30.0, ["de", "de"]),  # as "ok" alone, which may be in any language
        (0.01, 30.0, ["de", "en"]),
        (0.01, 0.5, ["de", "de"]),  # the first utterance has been enough
    ],
)
@pytest.mark.parametrize("asked", [{}, {"language": "auto"}])
def test_a_session_is_in_the_language_of_its_first_speech(
    second_is_german: float,
    detection_s: float,
    transcripts: list[str],
    asked: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_language, "DETECTION_S", detection_s)
    heard: list[np.ndarray] = []  # how each clip begins whose language is detected

    def languages(clip: ClipRequest) -> dict[str, float]:
        heard.append(clip.samples[:16_000])
        german = 0.9 if np.array_equal(heard[-1], heard[0]) else second_is_german
        return {"de": math.log(german), "en": math.log(1 - german)}

    engine = FakeEngine(reply_with_options, languages=languages)
    with client_of(engine, model=WHISPER) as client, opened(client, transcription=asked) as session:
        append(session, ulaw())
        events = until(session, f"{TRANSCRIPTION}.completed", 2)
    assert [event["transcript"] for event in of_type(events, f"{TRANSCRIPTION}.completed")] == transcripts
    # Of the second, the model is not asked once the language is settled.
    assert all(np.array_equal(each, heard[0]) for each in heard) == (detection_s < 1)


def test_deltas_are_sent_before_the_utterance_ends(client: TestClient) -> None:
    with opened(client) as session:
        long = np.concatenate([sentence("agent")] * 3)
        for piece in ulaw(long):
            session.send_bytes(piece)
        events = until(session, f"{TRANSCRIPTION}.delta")
        assert not of_type(events, "input_audio_buffer.committed")


def test_a_commit_ends_the_current_utterance(client: TestClient) -> None:
    with opened(client) as session:
        append(session, ulaw()[:15])  # into the middle of the first sentence
        session.send_json({"type": "input_audio_buffer.commit"})
        events = until(session, f"{TRANSCRIPTION}.completed")
        assert events[-1]["transcript"] == "en"
        session.send_json({"type": "input_audio_buffer.commit", "event_id": "mine"})
        [error] = until(session, "error")
        assert error["error"]["code"] == "input_audio_buffer_commit_empty"
        assert error["error"]["event_id"] == "mine"


def test_without_turn_detection_an_item_ends_at_a_commit(client: TestClient) -> None:
    with opened(client, turn_detection=None) as session:
        append(session, ulaw())
        session.send_json({"type": "input_audio_buffer.commit"})
        events = until(session, f"{TRANSCRIPTION}.completed")
        assert not of_type(events, "input_audio_buffer.speech_started")
        assert events[-1]["transcript"] == "en en"


def test_cleared_audio_is_not_transcribed(client: TestClient) -> None:
    with opened(client, turn_detection=None) as session:
        append(session, ulaw())
        session.send_json({"type": "input_audio_buffer.clear"})
        assert session.receive_json()["type"] == "input_audio_buffer.cleared"
        append(session, ulaw(sentence("agent")))
        session.send_json({"type": "input_audio_buffer.commit"})
        assert until(session, f"{TRANSCRIPTION}.completed")[-1]["transcript"] == "en"


def test_nothing_of_cleared_audio_is_sent_later() -> None:
    engine = FakeEngine(batch=2)  # the first part of an utterance waits for another
    with client_of(engine) as client, opened(client) as session:
        append(session, ulaw()[:15])  # into the middle of the first sentence
        session.send_json({"type": "input_audio_buffer.clear"})
        until(session, "input_audio_buffer.cleared")
        append(session, ulaw(sentence("agent"))[:1])  # until it is answered, what was cancelled has ended
        session.send_json({"type": "session.update"})
        until(session, "error")
        assert len(engine.cancelled) == len(engine.requests) == 1


def test_an_event_id_that_is_no_text_does_not_end_the_session(client: TestClient) -> None:
    with opened(client) as session:
        session.send_text(r'{"type": "nonsense", "event_id": "\ud800"}')
        assert session.receive()["text"].encode()
        assert configure(session)["type"] == "session.updated"


def test_session_updated_states_what_is_in_force(client: TestClient) -> None:
    with opened(client) as session:
        asked = {"turn_detection": {"type": "server_vad", "silence_duration_ms": 1}, "noise_reduction": None}
        input = configure(session, **asked)["session"]["audio"]["input"]
        assert input["turn_detection"]["silence_duration_ms"] == 700
        assert input["format"]["type"] == "audio/pcmu"
        assert configure(session, transcription={"language": "fr"})["session"]["audio"]["input"]["format"]["type"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("nonsense", "bad_event"),
        ("[]", "bad_event"),
        ('{"type": "input_audio_buffer.clear", "type": "input_audio_buffer.commit"}', "bad_event"),
        ('{"type": "response.create"}', "unknown_event"),
        ('{"type": "input_audio_buffer.append", "audio": "not base64!"}', "bad_event"),
        ('{"type": "input_audio_buffer.append"}', "bad_event"),
        ('{"type": "session.update"}', "bad_session"),
        ('{"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 5}}}}}', "bad_session"),
        ('{"type": "session.update", "session": {"audio": 3}}', "bad_session"),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"transcription": {"language": "xx"}}}}}',
            "unsupported_language",
        ),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "gpt-9"}}}}}',
            "model_not_found",
        ),
    ],
)
def test_an_error_is_answered_and_the_session_goes_on(client: TestClient, message: str, code: str) -> None:
    with opened(client) as session:
        session.send_text(message)
        error = session.receive_json()
        assert (error["type"], error["error"]["code"]) == ("error", code)
        append(session, ulaw())
        assert until(session, f"{TRANSCRIPTION}.completed")


def test_an_item_that_the_engine_refuses_fails_alone(client: TestClient) -> None:
    with opened(client, transcription={"keywords": ["refuse me"]}) as session:
        append(session, ulaw())
        events = until(session, f"{TRANSCRIPTION}.failed", 2)
        assert {event["error"]["code"] for event in of_type(events, f"{TRANSCRIPTION}.failed")} == {"engine_refused"}


@pytest.mark.parametrize(
    "message",
    [
        "[" * 100_000,
        '{"type": "session.update", "session": ' + '{"audio":' * 100_000,
        '{"type": ' + "[" * 900 + "]" * 900 + "}",
        '{"type": "input_audio_buffer.clear", "event_id": ' + "[" * 900 + "]" * 900 + "}",
        '{"type": "session.update", "session": {"audio": {"input": {"format": ' + "[" * 900 + "]" * 900 + "}}}}",
    ],
)
def test_deep_json_is_an_error_and_the_session_goes_on(client: TestClient, message: str) -> None:
    with opened(client) as session:
        session.send_text(message)
        assert session.receive_json()["type"] == "error"
        append(session, ulaw())
        assert until(session, f"{TRANSCRIPTION}.completed")


def test_a_session_has_a_lifetime() -> None:
    with client_of(scripted_engine(), max_session_s=0.5) as client, client.websocket_connect(URL) as session:
        assert session.receive_json()["type"] == "session.created"
        assert session.receive_json()["error"]["code"] == "session_expired"
        with pytest.raises(WebSocketDisconnect):
            session.receive_json()


def test_an_idle_session_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_session, "IDLE_S", 0.3)
    with client_of(scripted_engine()) as client, client.websocket_connect(URL) as session:
        assert session.receive_json()["type"] == "session.created"
        assert session.receive_json()["error"]["code"] == "idle_timeout"


def test_sessions_and_requests_are_admitted_separately() -> None:
    with client_of(scripted_engine(), max_requests=1, max_live_sessions=2) as client, client.websocket_connect(URL):
        assert post(client).status_code == 200


def test_one_key_cannot_take_all_sessions(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\nsk-two\n")
    one, two = ({"authorization": f"Bearer sk-{name}"} for name in ("one", "two"))
    with (
        client_of(scripted_engine(), max_live_sessions=2, api_keys=str(tmp_path / "keys")) as client,
        client.websocket_connect(URL, headers=one),
    ):
        with pytest.raises((WebSocketDisconnect, WebSocketDenialResponse)):
            client.websocket_connect(URL, headers=one).__enter__()
        with client.websocket_connect(URL, headers=two) as session:
            assert session.receive_json()["type"] == "session.created"


def test_audio_over_the_limit_ends_the_session() -> None:
    with client_of(scripted_engine(), max_audio_s=1.0) as client, opened(client) as session:
        append(session, ulaw())
        assert until(session, "error")[-1]["error"]["code"] == "too_long"


def test_the_key_is_a_header_or_a_subprotocol(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\n")
    with client_of(scripted_engine(), api_keys=str(tmp_path / "keys")) as client:
        with client.websocket_connect(URL, headers={"authorization": "Bearer sk-one"}) as session:
            assert session.receive_json()["type"] == "session.created"
        with client.websocket_connect(URL, ["realtime", "openai-insecure-api-key.sk-one"]) as session:
            assert session.accepted_subprotocol == "realtime"
        with pytest.raises((WebSocketDisconnect, WebSocketDenialResponse)):
            client.websocket_connect(URL).__enter__()


def test_pages_of_other_sites_may_not_connect(client: TestClient) -> None:
    with pytest.raises((WebSocketDisconnect, WebSocketDenialResponse)):
        client.websocket_connect(URL, headers={"origin": "https://example.org"}).__enter__()


def test_an_overloaded_endpoint_refuses_a_session() -> None:
    with client_of(scripted_engine(), max_live_sessions=1) as client, client.websocket_connect(URL) as session:
        assert session.receive_json()["type"] == "session.created"
        with pytest.raises((WebSocketDisconnect, WebSocketDenialResponse)):
            client.websocket_connect(URL).__enter__()
