"""Transient errors are retried, permanent ones are not, and every operation has a time limit."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from speech.errors import AudioError, UsageError
from storage.driver_errors import error_code, is_transient
from storage.filesystem import Storage
from storage.retry import retry
from testing.fault_proxy import FAULTS, FaultProxy, faults_before
from tests.conftest import S3
from tests.storage.remote import LOCAL_WEB, open_remote

# Small ranges, so that a response without faults is fast. The file takes a HEAD and three range requests.
RANGE_BYTES = 64 << 10
CALL = random.Random(0).randbytes(2 * RANGE_BYTES + RANGE_BYTES // 2)
Faulty = Callable[..., AbstractContextManager[FaultProxy]]


@pytest.fixture(autouse=True)
def small_ranges_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ranges and short waits between attempts."""
    for module in ("remote", "filesystem"):
        monkeypatch.setattr(f"storage.{module}.BLOCK_BYTES", RANGE_BYTES)
    monkeypatch.setattr("storage.retry._FIRST_WAIT_S", 0.05)


@pytest.fixture
def faulty(s3: S3) -> Faulty:
    """A fault proxy before the S3 server, whose bucket holds ``call.wav``."""
    Storage(s3.options).write_bytes(f"{s3.bucket}/call.wav", CALL)
    return partial(faults_before, s3.endpoint)


def storage_through(
    proxy: FaultProxy, retry_for_s: float = 30.0, attempts: int = 3, read_timeout_s: float = 0.4
) -> Storage:
    """Storage through the proxy, with a short read timeout."""
    config = {"read_timeout": read_timeout_s, "retries": {"mode": "standard", "total_max_attempts": attempts}}
    options = {"key": "testing", "secret": "testing", "endpoint_url": proxy.endpoint, "config_kwargs": config}
    return Storage(options, retry_for_s)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_repeats_one_range_not_the_file(faulty: Faulty, s3: S3, fault: str) -> None:
    with faulty(script=[None, None, fault]) as proxy:  # in the second range
        # Long enough that on a busy machine no other request times out, since requests are counted.
        storage = storage_through(proxy, read_timeout_s=2.0 if fault == "stall" else 20.0)
        with open_remote(storage, f"{s3.bucket}/call.wav") as audio:
            assert audio.read() == CALL
        assert proxy.injected == {fault: 1}
        assert proxy.passed == 4  # a HEAD and three ranges


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_retries_a_fault(faulty: Faulty, s3: S3, fault: str) -> None:
    root = s3.bucket
    with faulty() as proxy:
        storage = storage_through(proxy, attempts=1)  # no retries by the driver, so that Storage's are tested
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
def test_create_bytes_is_exact_when_the_response_is_lost(faulty: Faulty, s3: S3, fault: str) -> None:
    with faulty(script=[None, None, fault]) as proxy:  # no such file, no such folder, then the PUT
        storage = storage_through(proxy)
        assert storage.create_bytes(f"{s3.bucket}/lease", b"mine")
        assert not storage.create_bytes(f"{s3.bucket}/lease", b"another's")
        assert storage.read_bytes(f"{s3.bucket}/lease") == b"mine"


def test_frequent_faults_of_every_kind(faulty: Faulty, s3: S3) -> None:
    with faulty(share=0.25, seed=1) as proxy:
        storage = storage_through(proxy)
        for number in range(25):
            storage.write_bytes(f"{s3.bucket}/many/{number:02}", bytes([number]) * 1000)
        assert len(storage.list(f"{s3.bucket}/many")) == 25
        for number in range(25):
            assert storage.read_bytes(f"{s3.bucket}/many/{number:02}") == bytes([number]) * 1000
        assert set(proxy.injected) == set(FAULTS)


def test_permanent_throttling_fails_after_the_retry_limit(faulty: Faulty, s3: S3) -> None:
    with faulty(share=1.0, kinds=["slow_down"]) as proxy, pytest.raises(AudioError) as caught:
        storage_through(proxy, retry_for_s=4, attempts=1).open_audio(f"{s3.bucket}/call.wav")
    assert caught.value.code == "unreadable"
    assert f"{s3.bucket}/call.wav cannot be read: " in caught.value.message
    assert caught.value.message.count("\n") == 0
    assert proxy.injected["slow_down"] > 1


def test_a_stalled_object_times_out_and_does_not_block_others(faulty: Faulty, s3: S3) -> None:
    with faulty(script=[None, "stall", "stall", "stall"]) as proxy:
        storage, ended = storage_through(proxy, retry_for_s=0.1), threading.Event()

        def read_stalled() -> None:
            with pytest.raises(AudioError, match="cannot be read"):
                storage.open_audio(f"{s3.bucket}/call.wav")
            ended.set()

        start = time.monotonic()
        threading.Thread(target=read_stalled).start()
        while proxy.injected["stall"] < 1:
            time.sleep(0.01)
        # In the same process, another object can be read meanwhile.
        with Storage(s3.options | {"default_block_size": 5 << 20}).open(f"{s3.bucket}/call.wav") as other:
            assert other.read(4) == CALL[:4]
        assert not ended.is_set()
        assert ended.wait(timeout=20)
        assert time.monotonic() - start < 20


@pytest.mark.parametrize(("status", "code"), [(403, "forbidden"), (404, "not_found")])
def test_not_found_and_forbidden_are_not_retried(s3: S3, status: int, code: str) -> None:
    requests: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        requests.append(handler.command)
        _plain(handler, status)

    with _web(answer) as address:
        with pytest.raises(AudioError) as caught:
            Storage(**LOCAL_WEB).open_audio(f"{address}/call.wav")
        assert caught.value.code == code
        assert len(requests) <= 2  # HEAD, and GET for servers without HEAD
    with faults_before(s3.endpoint) as proxy:
        with pytest.raises(AudioError):
            storage_through(proxy).open_audio(f"{s3.bucket}/none.wav")
        assert proxy.passed <= 2  # as a file, as a folder


CREDENTIAL_CODES = ["ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestExpired", "SignatureDoesNotMatch"]


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("code", [*CREDENTIAL_CODES, "TokenRefreshRequired", "ExpiredTokenException"])
def test_credential_errors_are_forbidden_whatever_their_status(faulty: Faulty, s3: S3, status: int, code: str) -> None:
    uri = f"{s3.bucket}/call.wav"
    with faulty(share=1.0, kinds=[f"{status} {code}"]) as proxy:
        storage = storage_through(proxy)
        operations: list[Callable[[], object]] = [
            lambda: storage.open_audio(uri),  # a HEAD, whose response has no body with the code
            lambda: storage.read_bytes(uri),
            lambda: storage.write_bytes(uri, b""),
            lambda: storage.create_bytes(uri, b""),
            lambda: storage.list(s3.bucket),
            lambda: storage.check_readable(uri),
        ]
        for operation in operations:
            with pytest.raises((AudioError, UsageError), match="check the credentials") as caught:
                operation()
            assert caught.value.code == "forbidden"
        assert sum(proxy.injected.values()) <= 2 * len(operations)  # not retried
        with pytest.raises(UsageError, match=f"forbidden: {code}"):
            storage.list(s3.bucket)


def test_credentials_that_expire_while_a_recording_is_read(faulty: Faulty, s3: S3) -> None:
    with faulty(script=[None, None, *["400 ExpiredToken"] * 5]) as proxy, pytest.raises(AudioError) as caught:
        storage_through(proxy).open_audio(f"{s3.bucket}/call.wav")
    assert caught.value.code == "forbidden"
    assert proxy.injected == {"400 ExpiredToken": 1}


def test_other_errors_with_status_400_are_unreadable(faulty: Faulty, s3: S3) -> None:
    with faulty(share=1.0, kinds=["400 InvalidRequest"]) as proxy, pytest.raises(UsageError) as caught:
        storage_through(proxy).list(s3.bucket)
    assert caught.value.code == "unreadable"


def test_an_unreachable_endpoint_is_reported_within_seconds() -> None:
    storage = Storage({"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:9"})
    start = time.monotonic()
    for check in (storage.check_readable, storage.check_writable):
        with pytest.raises(UsageError, match="Could not connect"):
            check("s3://bucket/file")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("ranges", ["bytes", "none", None])  # Accept-Ranges; None: no such header
def test_a_web_server_with_transient_faults(ranges: str | None) -> None:
    has_ranges = ranges == "bytes"
    body, faults = CALL[: RANGE_BYTES + 1000], iter([0, 503, 429, "half", 0, 503])

    def respond(handler: BaseHTTPRequestHandler) -> None:
        fault = next(faults, 0)
        if isinstance(fault, int) and fault:
            _plain(handler, fault)
            return
        first, last = 0, len(body) - 1
        if has_ranges and (requested := handler.headers.get("Range")):
            first, last = map(int, requested.removeprefix("bytes=").split("-"))
            last = min(last, len(body) - 1)
        handler.send_response(206 if handler.headers.get("Range") and has_ranges else 200)
        if has_ranges:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        if ranges:
            handler.send_header("Accept-Ranges", ranges)
        handler.send_header("Content-Length", str(last + 1 - first))
        handler.end_headers()
        if handler.command == "GET":
            content = body[first : last + 1]
            handler.wfile.write(content[: len(content) // 2] if fault == "half" else content)
            handler.close_connection = True

    with _web(respond) as address, open_remote(Storage(**LOCAL_WEB), f"{address}/call.wav") as audio:
        assert audio.read() == body


def test_a_file_that_is_replaced_by_a_shorter_one_is_not_taken_for_whole() -> None:
    served: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        body = CALL if len(served) < 2 else CALL[:RANGE_BYTES]  # after a HEAD and a range
        served.append(handler.command)
        first, last = map(int, handler.headers.get("Range", f"bytes=0-{len(body)}").removeprefix("bytes=").split("-"))
        content = body[first : last + 1]
        handler.send_response(206 if content else 416)
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content)

    with _web(respond) as address, pytest.raises(AudioError, match="shorter than before") as caught:
        open_remote(Storage(retry_for_s=0.2, **LOCAL_WEB), f"{address}/call.ulaw")
    assert caught.value.code == "unreadable"


def _plain(handler: BaseHTTPRequestHandler, status: int) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def _web(respond: Callable[[BaseHTTPRequestHandler], object]) -> AbstractContextManager[str]:
    """A web server that responds with ``respond``."""
    import contextlib

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

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


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "TokenRefreshRequired"])
def test_credentials_that_are_no_longer_accepted_are_forbidden(code: str) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    for error in (ClientError(response, "GetObject"), translate_boto_error(ClientError(response, "GetObject"))):
        assert error_code(error) == "forbidden"
        assert not is_transient(error)


def test_the_last_attempt_is_made_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("storage.retry._FIRST_WAIT_S", 100.0)  # as after many attempts
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)

    def refused() -> None:
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        retry(0.2, refused)
    assert waits
    assert max(waits) <= 0.2
