"""The endpoint on Ray Serve, whole: what its clients see when engines die, clients leave, and it is told to end."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serve.conftest import PATIENCE_S, Served, eventually, served_mortal
from tests.serve.direct import CALL, MODEL

pytestmark = pytest.mark.ray

# Three requests are mostly given to both engines; where they were not within so long, they are asked anew.
GIVEN_OUT_S = 5.0


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
def waiting(mortal: tuple[Served, Path]) -> Path:
    """The folder in which a test sees that a request waits, and lets it go."""
    forget(mortal[1])
    return mortal[1]


def ask_in_halves(endpoint: Served, rest: threading.Event) -> httpx.Response:
    """Sends the second half of its upload when ``rest`` is set."""
    url = f"{endpoint.url}/v1/audio/transcriptions"
    whole = httpx.Request("POST", url, data={"model": MODEL}, files={"file": ("call.wav", CALL)})
    body = whole.read()

    def backend() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        rest.wait(PATIENCE_S)
        yield body[len(body) // 2 :]

    headers = {"content-type": whole.headers["content-type"], "content-length": str(len(body))}
    return httpx.post(url, content=backend(), headers=headers, timeout=90.0)


def forget(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def working(folder: Path) -> list[Path]:
    """A file for each engine that has a request that waits."""
    return list(folder.glob("waits-*"))


def both_work(endpoint: Served, folder: Path) -> bool:
    """Whether requests that wait together wait in two engines."""
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, endpoint, **keywords("wait")) for _ in range(3)]
        until = time.monotonic() + GIVEN_OUT_S
        while not (both := len(working(folder)) == 2) and time.monotonic() < until:
            time.sleep(0.1)
        (folder / "go").touch()
        assert {one.result().status_code for one in asked} == {200}
    forget(folder)
    return both


def test_an_upload_goes_through_both_halves(mortal: tuple[Served, Path]) -> None:
    endpoint, _ = mortal
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


def test_errors_cross_from_the_halves_as_they_are(mortal: tuple[Served, Path]) -> None:
    endpoint, _ = mortal
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


def test_a_client_that_leaves_frees_its_work(mortal: tuple[Served, Path], waiting: Path) -> None:
    endpoint, _ = mortal
    for fields in ({}, {"stream": "true"}):
        with pytest.raises(httpx.ReadTimeout):
            ask(endpoint, timeout=3.0, **(keywords("wait") | fields))
        eventually((waiting / "given-up").exists)
        (waiting / "given-up").unlink()


def test_a_dead_engine_takes_only_its_own_requests_along(mortal: tuple[Served, Path], waiting: Path) -> None:
    endpoint, _ = mortal
    eventually(lambda: both_work(endpoint, waiting))
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(ask, endpoint, **keywords("wait"))
        eventually(lambda: working(waiting))
        fallen = ask(endpoint, **keywords("die"))  # the other engine has less to do
        assert (fallen.status_code, fallen.json()["error"]["code"]) == (503, "replica_died")
        assert int(fallen.headers["retry-after"]) > 0
        (waiting / "go").touch()
        assert elsewhere.result().status_code == 200
    assert ask(endpoint).status_code == 200


def test_a_full_endpoint_refuses_at_once(mortal: tuple[Served, Path], waiting: Path) -> None:
    endpoint, _ = mortal
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, endpoint, **keywords("wait")) for _ in range(8)]
        eventually(lambda: sum(one.done() for one in asked) == 4)
        refused = [one.result() for one in asked if one.done()]
        assert {answer.status_code for answer in refused} == {503}
        assert all("retry-after" in answer.headers for answer in refused)
        (waiting / "go").touch()
        assert sorted(one.result().status_code for one in asked) == [200] * 4 + [503] * 4


def test_metrics_of_all_replicas_are_at_one_place(mortal: tuple[Served, Path]) -> None:
    endpoint, _ = mortal

    def exported() -> str | None:
        text = httpx.get(endpoint.metrics, timeout=30).text
        return text if 'code="engine_refused"' in text and "ray_rayscribe_audio_seconds" in text else None

    text = eventually(exported)
    for name in ("requests_total", "requests_in_hand", "request_seconds_bucket", "first_text_seconds", "rtfx"):
        assert f"ray_rayscribe_{name}" in text
    assert "call.wav" not in text


def test_told_to_end_it_finishes_what_it_has(mortal: tuple[Served, Path], waiting: Path) -> None:
    endpoint, _ = mortal
    rest = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        uploading = pool.submit(ask_in_halves, endpoint, rest)
        decoding = pool.submit(ask, endpoint, **keywords("wait"))
        eventually(lambda: working(waiting))
        endpoint.process.terminate()
        eventually(lambda: ask(endpoint).status_code == 503)
        rest.set()
        assert uploading.result().status_code == 200
        (waiting / "go").touch()
        assert decoding.result().status_code == 200
    code, printed = endpoint.wait()
    assert "Traceback" not in printed
    assert code == 0


def test_an_engine_comes_with_a_request_and_goes_when_there_is_no_more(tmp_path: Path) -> None:
    endpoint = served_mortal(tmp_path, "engines=1", "min_engines=0", "engine_idle_s=0")
    try:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, endpoint, **keywords("wait"))
            [waits] = eventually(lambda: working(tmp_path))
            (tmp_path / "go").touch()
            assert asked.result().status_code == 200
        engine = int(waits.name.removeprefix("waits-"))
        # Serve looks back over half a minute before it believes that nobody asks.
        eventually(lambda: not psutil.pid_exists(engine))
    finally:
        endpoint.stop()
