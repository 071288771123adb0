"""The whole endpoint on Ray Serve: dead engines, disconnected clients, overload, shutdown."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.serve.conftest import MAX_WAIT_S, Served, eventually, served_scripted
from tests.serve.direct import CALL, MODEL

pytestmark = pytest.mark.ray

# Three requests mostly reach both engines; if they have not within this time, three more are sent.
SPREAD_S = 5.0


def ask(endpoint: Served, *, timeout: float = 90.0, audio: bytes = CALL, **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{endpoint.url}/v1/audio/transcriptions",
        data={"model": MODEL, **fields},
        files={"file": ("call.wav", audio)},
        timeout=timeout,
    )


def keywords(word: str) -> dict[str, Any]:
    return {"keywords[]": word}


@pytest.fixture
def waiting(scripted: tuple[Served, Path]) -> Path:
    """The folder that controls the engines, empty."""
    clear(scripted[1])
    return scripted[1]


def ask_in_halves(endpoint: Served, rest: threading.Event) -> httpx.Response:
    """Sends the second half of its upload when ``rest`` is set."""
    url = f"{endpoint.url}/v1/audio/transcriptions"
    whole = httpx.Request("POST", url, data={"model": MODEL}, files={"file": ("call.wav", CALL)})
    body = whole.read()

    def halves() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        rest.wait(MAX_WAIT_S)
        yield body[len(body) // 2 :]

    headers = {"content-type": whole.headers["content-type"], "content-length": str(len(body))}
    return httpx.post(url, content=halves(), headers=headers, timeout=90.0)


def clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def waiting_engines(folder: Path) -> list[Path]:
    """A file for each engine with a waiting request."""
    return list(folder.glob("waits-*"))


def spread(endpoint: Served, folder: Path) -> bool:
    """Whether concurrent requests are spread over both engines."""
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, endpoint, **keywords("wait")) for _ in range(3)]
        until = time.monotonic() + SPREAD_S
        while not (both := len(waiting_engines(folder)) == 2) and time.monotonic() < until:
            time.sleep(0.1)
        (folder / "go").touch()
        assert {one.result().status_code for one in asked} == {200}
    clear(folder)
    return both


def test_an_upload_is_transcribed_whole_and_as_a_stream(scripted: tuple[Served, Path]) -> None:
    endpoint, _ = scripted
    whole = ask(endpoint, response_format="verbose_json", **keywords("Kuhn")).json()
    assert len(whole["segments"]) == 4
    assert whole["text"] == " ".join(["en Kuhn"] * 4)
    with httpx.stream(
        "POST",
        f"{endpoint.url}/v1/audio/transcriptions",
        data={"model": MODEL, "stream": "true"},
        files={"file": ("call.wav", CALL)},
        timeout=90,
    ) as streamed:
        events = [json.loads(line.removeprefix("data: ")) for line in streamed.iter_lines() if line]
    assert [event["type"] for event in events] == ["transcript.text.delta"] * 4 + ["transcript.text.done"]


def test_errors_of_all_deployments_reach_the_client(scripted: tuple[Served, Path]) -> None:
    endpoint, _ = scripted
    refused: list[tuple[dict[str, Any], bytes, tuple[int, str]]] = [
        ({}, b"", (422, "empty")),
        ({}, b"not audio at all\n" * 100_000, (422, "unreadable")),
        ({}, b"too long\n" * 400_000, (413, "too_large")),
        (keywords("refuse me"), CALL, (500, "engine_refused")),
        (keywords("break me"), CALL, (500, "internal")),
    ]
    for fields, audio, expected in refused:
        answer = ask(endpoint, audio=audio, **fields)
        assert (answer.status_code, answer.json()["error"]["code"]) == expected


def test_a_client_that_disconnects_cancels_its_work(scripted: tuple[Served, Path], waiting: Path) -> None:
    endpoint, _ = scripted
    for fields in ({}, {"stream": "true"}):
        with pytest.raises(httpx.ReadTimeout):
            ask(endpoint, timeout=3.0, **(keywords("wait") | fields))
        eventually((waiting / "cancelled").exists)
        (waiting / "cancelled").unlink()


def test_a_dead_engine_fails_only_its_own_requests(scripted: tuple[Served, Path], waiting: Path) -> None:
    endpoint, _ = scripted
    eventually(lambda: spread(endpoint, waiting))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, endpoint, **keywords("wait"))
        eventually(lambda: waiting_engines(waiting))
        failed = ask(endpoint, **keywords("die"))  # the other engine has fewer requests
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "replica_died")
        assert int(failed.headers["retry-after"]) > 0
        (waiting / "go").touch()
        assert other.result().status_code == 200
    assert ask(endpoint).status_code == 200


def test_an_overloaded_endpoint_refuses_at_once(scripted: tuple[Served, Path], waiting: Path) -> None:
    endpoint, _ = scripted
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, endpoint, **keywords("wait")) for _ in range(8)]
        eventually(lambda: sum(one.done() for one in asked) == 4)
        refused = [one.result() for one in asked if one.done()]
        assert {answer.status_code for answer in refused} == {503}
        assert all("retry-after" in answer.headers for answer in refused)
        (waiting / "go").touch()
        assert sorted(one.result().status_code for one in asked) == [200] * 4 + [503] * 4


def test_metrics_of_all_replicas_are_at_one_port(scripted: tuple[Served, Path]) -> None:
    endpoint, _ = scripted

    def exported() -> str | None:
        text = httpx.get(endpoint.metrics, timeout=30).text
        return text if 'code="engine_refused"' in text and "ray_rayscribe_audio_seconds" in text else None

    text = eventually(exported)
    for name in ("requests_total", "requests_in_hand", "request_seconds_bucket", "first_text_seconds", "rtfx"):
        assert f"ray_rayscribe_{name}" in text
    assert "call.wav" not in text


def test_metrics_listen_where_the_endpoint_does(scripted: tuple[Served, Path]) -> None:
    endpoint, _ = scripted
    for url in (endpoint.url, endpoint.metrics):
        port = urlsplit(url).port
        listening = {
            connection.laddr.ip
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        }
        assert listening == {"127.0.0.1"}


def test_sigterm_finishes_the_requests_in_flight(scripted: tuple[Served, Path], waiting: Path) -> None:
    endpoint, _ = scripted
    rest = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        uploading = pool.submit(ask_in_halves, endpoint, rest)
        decoding = pool.submit(ask, endpoint, **keywords("wait"))
        eventually(lambda: waiting_engines(waiting))
        endpoint.process.terminate()
        eventually(lambda: ask(endpoint).status_code == 503)
        rest.set()
        assert uploading.result().status_code == 200
        (waiting / "go").touch()
        assert decoding.result().status_code == 200
    code, printed = endpoint.wait()
    assert "Traceback" not in printed
    assert code == 0


@pytest.mark.long
def test_an_engine_starts_with_a_request_and_stops_when_idle(tmp_path: Path) -> None:
    endpoint = served_scripted(tmp_path, "engines=1", "min_engines=0", "engine_idle_s=0")
    try:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, endpoint, **keywords("wait"))
            [waits] = eventually(lambda: waiting_engines(tmp_path))
            (tmp_path / "go").touch()
            assert asked.result().status_code == 200
        engine = int(waits.name.removeprefix("waits-"))
        # Serve averages over half a minute before it scales down.
        eventually(lambda: not psutil.pid_exists(engine))
    finally:
        endpoint.stop()
