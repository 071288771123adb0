"""The endpoint's own HTTP server, over sockets: slow clients, large uploads, WebSockets."""

import asyncio
import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from websockets.sync.client import connect

from serve import http_server, upload
from serve.http_server import HttpServer
from serve.metrics import RequestMetrics
from serve.routes import http_app
from serve.service import TranscriptionService
from serve.settings import MIB, ServeSettings
from speech.engines.base import ClipRequest
from speech.engines.fake import FakeEngine
from testing.ports import free_port
from testing.synthetic_audio import call, sndfile
from tests.pipelines.jobs import scripted_engine
from tests.serve.direct import CALL, MODEL, DirectBackend

HEAD = b'--b\r\ncontent-disposition: form-data; name="file"; filename="call.wav"\r\n\r\n'
TAIL = f'\r\n--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n{MODEL}\r\n--b--\r\n'.encode()
FORM = {"content-type": "multipart/form-data; boundary=b"}
WAIT_S = 20.0


@contextlib.contextmanager
def served(engine: FakeEngine | None = None, *, local: bool = False, **settings: Any) -> Iterator[str]:
    """Serves in a thread of this process; yields the URL."""
    port, ready, ended = free_port(), threading.Event(), threading.Event()

    async def serve() -> None:
        asked = ServeSettings.from_settings({"model": MODEL, "port": port, **settings})
        backend = DirectBackend(engine or scripted_engine(), local=local)
        service = TranscriptionService(asked, {MODEL: backend}, RequestMetrics())
        server = HttpServer(http_app(asked, service), asked.host, asked.port)
        ready.set()
        while not ended.is_set():
            await asyncio.sleep(0.01)
        await server.stop()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(WAIT_S)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        ended.set()
        thread.join(WAIT_S)


def post(url: str, body: Iterator[bytes] | bytes, size: int | None = None) -> httpx.Response:
    headers = FORM | ({} if size is None else {"content-length": str(size)})
    return httpx.post(f"{url}/v1/audio/transcriptions", content=body, headers=headers, timeout=WAIT_S)


@pytest.mark.parametrize("stream", [b"", b"true"])
def test_a_client_that_disconnects_cancels_its_work(stream: bytes) -> None:
    started, cancelled, released = threading.Event(), threading.Event(), threading.Event()

    async def wait(clip: ClipRequest) -> None:
        started.set()
        try:
            while not released.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    field = b'\r\n--b\r\ncontent-disposition: form-data; name="stream"\r\n\r\n' + stream
    body = HEAD + CALL + field + TAIL
    lines = ("POST /v1/audio/transcriptions HTTP/1.1", "host: localhost", f"content-length: {len(body)}")
    head = "\r\n".join([*lines, f"content-type: {FORM['content-type']}", "", ""])
    with served(FakeEngine(before=wait), max_requests=1) as url:
        with opened(url) as client:
            client.sendall(head.encode() + body)
            assert started.wait(WAIT_S)
        assert cancelled.wait(WAIT_S)
        released.set()
        answers = (post(url, HEAD + CALL + TAIL).status_code for _ in range(100))
        assert 200 in answers  # at the latest when the admission is free again


def opened(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=WAIT_S)


def test_requests_and_sessions_are_answered() -> None:
    with served() as url:
        assert post(url, HEAD + CALL + TAIL).json()["text"]
        with connect(f"{url.replace('http', 'ws')}/v1/realtime") as session:
            assert json.loads(session.recv())["type"] == "session.created"


@pytest.mark.parametrize("first", [b"", b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"])
def test_a_connection_without_complete_headers_is_closed(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(http_server, "HEADER_TIMEOUT_S", 0.5)
    with served() as url, opened(url) as client:
        if first:
            client.sendall(first)
            assert b"200 OK" in client.recv(1 << 16)
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < WAIT_S:
                client.sendall(b"GET / HTTP/1.1\r\n" if first else b"x")
                first = b""
                client.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not client.recv(1 << 16):
                        break
        assert time.monotonic() - start < 5
        assert httpx.get(f"{url}/v1/models").status_code == 200


def trickle(body: bytes, size: int, pause_s: float, stop: Callable[[], bool] = lambda: False) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        if stop():
            return
        yield body[start : start + size]
        time.sleep(pause_s)


def test_a_body_below_the_lowest_rate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "GRACE_S", 0.5)
    monkeypatch.setattr(http_server, "HEADER_TIMEOUT_S", 0.5)  # how long the rest is read after the answer
    with served() as url:
        start = time.monotonic()
        answer = post(url, trickle(HEAD + CALL + TAIL, 10, 0.05))
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "upload_timeout")
        assert time.monotonic() - start < 5


def test_a_body_at_the_lowest_rate_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "GRACE_S", 0.5)
    body = HEAD + CALL + TAIL
    with served() as url:
        start = time.monotonic()
        assert post(url, trickle(body, len(body) // 10, 0.15)).status_code == 200
        assert time.monotonic() - start > 2 * upload.GRACE_S


def test_uploads_share_a_byte_budget() -> None:
    held, release = threading.Event(), threading.Event()
    padding = bytes(700 << 10)

    def halves() -> Iterator[bytes]:
        yield HEAD + padding
        held.set()
        release.wait(WAIT_S)
        yield TAIL

    with served(max_uploads_mib=1) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, halves())
        assert held.wait(WAIT_S)
        refused = post(url, HEAD + padding + TAIL)
        release.set()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
        assert first.result().json()["error"]["code"] == "unreadable"  # it was read to its end
        assert post(url, HEAD + padding + TAIL).json()["error"]["code"] == "unreadable"


@pytest.mark.slow
def test_large_uploads_take_little_memory() -> None:
    """Sixteen uploads of 24 MiB are on disk at once, and none of them is in memory."""
    uploads, size = 16, 24 * MIB
    sent, release = threading.Barrier(uploads + 1), threading.Event()

    def body() -> Iterator[bytes]:
        yield HEAD
        piece = bytes(MIB)
        for _ in range(size // MIB):
            yield piece
        sent.wait(WAIT_S)
        release.wait(WAIT_S)
        yield TAIL

    process = psutil.Process(os.getpid())
    with served() as url, ThreadPoolExecutor(uploads) as pool:
        post(url, HEAD + CALL + TAIL)
        before = process.memory_full_info().uss
        answers = [pool.submit(post, url, body()) for _ in range(uploads)]
        sent.wait(WAIT_S)
        grown = process.memory_full_info().uss - before
        release.set()
        for answer in answers:
            answer.result()
    assert grown < uploads * 4 * MIB  # a spool of 1 MiB each, and what is on the way


def test_an_upload_over_the_limit_is_refused_before_it_is_sent() -> None:
    def body() -> Iterator[bytes]:
        yield HEAD
        for _ in range(64):
            yield bytes(MIB)

    with served(max_upload_mib=2) as url:
        process = psutil.Process(os.getpid())
        before = process.memory_full_info().uss
        headers = FORM | {"content-length": str(len(HEAD) + 64 * MIB)}
        answer = httpx.post(f"{url}/v1/audio/transcriptions", content=body(), headers=headers, timeout=WAIT_S)
        assert answer.status_code == 413
        assert post(url, body()).status_code == 413
        assert process.memory_full_info().uss - before < 16 * MIB


MODEL_FIELD = f'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n{MODEL}\r\n'.encode()
END = b"\r\n--b--\r\n"
LONG_CALL = sndfile(np.concatenate([call(exchanges=2)[0]] * 12), "WAV", "PCM_16")


@pytest.fixture(params=[b"", b"true"], ids=["whole", "stream"])
def streamed(request: pytest.FixtureRequest) -> bytes:
    return b'--b\r\ncontent-disposition: form-data; name="stream"\r\n\r\n' + (request.param or b"false") + b"\r\n"


def test_the_first_clips_are_decoded_while_the_rest_arrives(streamed: bytes) -> None:
    """The upload's second half is sent when the engine has a clip of the first."""
    decoding = threading.Event()

    async def note(clip: ClipRequest) -> None:
        decoding.set()

    body = MODEL_FIELD + streamed + HEAD + LONG_CALL + END

    def halves() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        assert decoding.wait(WAIT_S)
        yield body[len(body) // 2 :]

    with served(FakeEngine(before=note), local=True) as url:
        early = post(url, halves(), len(body))
        assert early.status_code == 200
    with served(FakeEngine()) as url:
        assert texts_of(early) == texts_of(post(url, body))


def texts_of(answer: httpx.Response) -> list[str]:
    """Without the ids of recordings, which differ."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return re.findall(r"\d+\.\d\d seconds", answer.json()["text"])
    *deltas, done = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    texts = re.findall(r"\d+\.\d\d seconds", done["text"])
    assert texts == [text for delta in deltas for text in re.findall(r"\d+\.\d\d seconds", delta["delta"])]
    return texts


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        (HEAD, TAIL),  # the model is not known before
        (MODEL_FIELD + HEAD, TAIL.replace(b'"model"', b'"keywords"')),  # known before, but not all
        (MODEL_FIELD + HEAD, b"\r\n--b--"),  # two bytes fewer than most clients send
    ],
    ids=["model behind", "keywords behind", "short end"],
)
def test_what_follows_the_file_counts(head: bytes, tail: bytes) -> None:
    def pieces() -> Iterator[bytes]:
        yield head + LONG_CALL[: len(LONG_CALL) * 3 // 4]
        yield LONG_CALL[len(LONG_CALL) * 3 // 4 :] + tail

    engine, size = FakeEngine(), len(head) + len(LONG_CALL) + len(tail)
    with served(engine, local=True) as url:
        answer = post(url, pieces(), size)
        assert answer.status_code == 200, answer.text
        assert engine.requests[-1].options.keywords == ((MODEL,) if b'"keywords"' in tail else ())
        assert texts_of(answer) == texts_of(post(url, MODEL_FIELD + HEAD + LONG_CALL + END))


def test_an_upload_that_takes_long_holds_no_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest would take longer than SOON_S at the rate of the first piece."""
    monkeypatch.setattr(upload, "SOON_S", 0.0)
    engine = FakeEngine()
    body = MODEL_FIELD + HEAD + LONG_CALL + END

    def pieces() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        assert not engine.requests
        yield body[len(body) // 2 :]

    with served(engine, local=True) as url:
        assert post(url, pieces(), len(body)).status_code == 200
    assert engine.requests
