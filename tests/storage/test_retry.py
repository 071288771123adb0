"""What passes is waited for, what was decided is not asked twice, and nobody waits for ever."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from speech.errors import AudioError, UsageError
from storage.filesystem import Storage
from testing.fault_proxy import FAULTS, FaultProxy, faults_before
from tests.conftest import S3
from tests.storage.remote import open_remote

# Ranges are small here, so that no healthy answer takes long: three requests, and a HEAD before them.
RANGE_BYTES = 64 << 10
CALL = random.Random(0).randbytes(2 * RANGE_BYTES + RANGE_BYTES // 2)
Faulty = Callable[..., AbstractContextManager[FaultProxy]]


@pytest.fixture(autouse=True)
def small_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ranges, and short waits before something is tried again."""
    for module in ("remote", "filesystem"):
        monkeypatch.setattr(f"storage.{module}.BLOCK_BYTES", RANGE_BYTES)
    monkeypatch.setattr("storage.retry._FIRST_WAIT_S", 0.05)


@pytest.fixture
def faulty(s3: S3) -> Faulty:
    """The server behind a bad network; ``call.wav`` is there."""
    Storage(s3.options).write_bytes(f"{s3.bucket}/call.wav", CALL)
    return partial(faults_before, s3.endpoint)


def behind(proxy: FaultProxy, retry_for_s: float = 30.0, attempts: int = 3, read_timeout_s: float = 0.4) -> Storage:
    """Storage that is reached through a proxy, and notices soon that nobody answers."""
    config = {"read_timeout": read_timeout_s, "retries": {"mode": "standard", "total_max_attempts": attempts}}
    options = {"key": "testing", "secret": "testing", "endpoint_url": proxy.endpoint, "config_kwargs": config}
    return Storage(options, retry_for_s)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_one_range_and_not_the_file(faulty: Faulty, s3: S3, fault: str) -> None:
    with faulty(script=[None, None, fault]) as proxy:  # in the second range
        # Long enough that on a busy machine nothing else times out, and so that requests can be counted.
        storage = behind(proxy, read_timeout_s=2.0 if fault == "stall" else 20.0)
        with open_remote(storage, f"{s3.bucket}/call.wav") as audio:
            assert audio.read() == CALL
        assert proxy.injected == {fault: 1}
        assert proxy.passed == 4  # a HEAD and three ranges


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_in_any_operation_is_not_seen(faulty: Faulty, s3: S3, fault: str) -> None:
    root = s3.bucket
    with faulty() as proxy:
        storage = behind(proxy, attempts=1)  # none of the driver's, so that it is ours that are tried
        operations: list[Callable[[], object]] = [
            lambda: storage.write_bytes(f"{root}/x/new", b"new"),
            lambda: storage.read_bytes(f"{root}/x/new"),
            lambda: storage.read_bytes(f"{root}/x/none"),
            lambda: storage.exists(f"{root}/x"),
            lambda: storage.is_folder(f"{root}/x"),
            lambda: storage.list(f"{root}/x"),
            lambda: storage.list(f"{root}/x/*"),
            lambda: storage.open(f"{root}/x/new").read(),
            lambda: storage.check_readable(f"{root}/x/new"),
            lambda: storage.check_writable(f"{root}/x"),
            lambda: storage.remove(f"{root}/x/new"),
        ]
        answers: list[object] = [None, b"new", None, True, True, [f"{root}/x/new"], [f"{root}/x/new"], b"new"]
        for operation, answer in zip(operations, [*answers, None, None, None], strict=True):
            proxy._script = [fault]
            assert operation() == answer
        assert proxy.injected[fault] == len(operations)
        assert storage.list(f"{root}/x") == []


@pytest.mark.parametrize("fault", FAULTS)
def test_who_has_written_first_is_known_though_the_answer_was_lost(faulty: Faulty, s3: S3, fault: str) -> None:
    with faulty(script=[None, None, fault]) as proxy:  # not there, not below, and then the PUT
        storage = behind(proxy)
        assert storage.create_bytes(f"{s3.bucket}/lease", b"mine")
        assert not storage.create_bytes(f"{s3.bucket}/lease", b"another's")
        assert storage.read_bytes(f"{s3.bucket}/lease") == b"mine"


def test_faults_of_every_kind_all_the_time(faulty: Faulty, s3: S3) -> None:
    with faulty(share=0.25, seed=1) as proxy:
        storage = behind(proxy)
        for number in range(25):
            storage.write_bytes(f"{s3.bucket}/many/{number:02}", bytes([number]) * 1000)
        assert len(storage.list(f"{s3.bucket}/many")) == 25
        for number in range(25):
            assert storage.read_bytes(f"{s3.bucket}/many/{number:02}") == bytes([number]) * 1000
        assert set(proxy.injected) == set(FAULTS)


def test_a_service_that_stays_busy_fails_the_row_in_the_end(faulty: Faulty, s3: S3) -> None:
    with faulty(share=1.0, kinds=["slow_down"]) as proxy, pytest.raises(AudioError) as caught:
        behind(proxy, retry_for_s=1.5, attempts=1).open_audio(f"{s3.bucket}/call.wav")
    assert caught.value.code == "unreadable"
    assert f"{s3.bucket}/call.wav cannot be read: " in caught.value.message
    assert caught.value.message.count("\n") == 0
    assert proxy.injected["slow_down"] > 1


def test_an_object_that_stalls_is_given_up_and_others_are_read_meanwhile(faulty: Faulty, s3: S3) -> None:
    with faulty(script=[None, "stall", "stall", "stall"]) as proxy:
        storage, ended = behind(proxy, retry_for_s=0.1), threading.Event()

        def read_the_stalled() -> None:
            with pytest.raises(AudioError, match="cannot be read"):
                storage.open_audio(f"{s3.bucket}/call.wav")
            ended.set()

        start = time.monotonic()
        threading.Thread(target=read_the_stalled).start()
        while proxy.injected["stall"] < 1:
            time.sleep(0.01)
        # The same process, the same connections: another answer comes while that one waits.
        with Storage(s3.options | {"default_block_size": 5 << 20}).open(f"{s3.bucket}/call.wav") as other:
            assert other.read(4) == CALL[:4]
        assert not ended.is_set()
        assert ended.wait(timeout=20)
        assert time.monotonic() - start < 20


@pytest.mark.parametrize(("status", "code"), [(403, "forbidden"), (404, "not_found")])
def test_what_storage_has_decided_is_not_asked_twice(s3: S3, status: int, code: str) -> None:
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.command)
        _plain(handler, status)

    with _web(answer) as address:
        with pytest.raises(AudioError) as caught:
            Storage().open_audio(f"{address}/call.wav")
        assert caught.value.code == code
        assert len(asked) <= 2  # HEAD, and GET for servers that do not know HEAD
    with faults_before(s3.endpoint) as proxy:
        with pytest.raises(AudioError):
            behind(proxy).open_audio(f"{s3.bucket}/none.wav")
        assert proxy.passed <= 2  # is it a file, is it a folder


@pytest.mark.slow
def test_a_dead_endpoint_is_reported_soon() -> None:
    storage = Storage({"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:9"})
    start = time.monotonic()
    for check in (storage.check_readable, storage.check_writable):
        with pytest.raises(UsageError, match="Could not connect"):
            check("s3://bucket/file")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("ranges", ["bytes", "none", None])  # as it says itself, or does not say
def test_a_web_server_that_stumbles(ranges: str | None) -> None:
    answers_ranges = ranges == "bytes"
    body, stumbles = CALL[: RANGE_BYTES + 1000], iter([0, 503, 429, "half", 0, 503])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        stumble = next(stumbles, 0)
        if isinstance(stumble, int) and stumble:
            _plain(handler, stumble)
            return
        first, last = 0, len(body) - 1
        if answers_ranges and (asked := handler.headers.get("Range")):
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            last = min(last, len(body) - 1)
        handler.send_response(206 if handler.headers.get("Range") and answers_ranges else 200)
        if answers_ranges:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        if ranges:
            handler.send_header("Accept-Ranges", ranges)
        handler.send_header("Content-Length", str(last + 1 - first))
        handler.end_headers()
        if handler.command == "GET":
            content = body[first : last + 1]
            handler.wfile.write(content[: len(content) // 2] if stumble == "half" else content)
            handler.close_connection = True

    with _web(answer) as address, open_remote(Storage(), f"{address}/call.wav") as audio:
        assert audio.read() == body


def _plain(handler: BaseHTTPRequestHandler, status: int) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def _web(answer: Callable[[BaseHTTPRequestHandler], object]) -> AbstractContextManager[str]:
    """A web server of which each request is answered as told."""
    import contextlib

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    @contextlib.contextmanager
    def serve() -> Iterator[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()

    return serve()
