"""Fault injection between a client and an S3 server on this machine.

``FaultProxy`` forwards requests and injects into some of them the faults of networks and busy services:

    slow_down    responds 503 SlowDown; the server does not receive the request
    reset        reads the request and resets the connection; the server does not receive it
    cut          forwards the request and resets the connection in the middle of the response, so that the server
                 has done what the client does not know of
    stall        reads the request and does not respond for ``stall_s``, longer than a client should wait

and, only if they are named, since they are not faults of the network:

    forbidden    responds 403 AccessDenied, as to wrong credentials
    "400 Code"   responds with any status and error code of S3

Faults are drawn from a seed, in the order in which requests arrive; or a script gives them, one entry a request, and
later requests are forwarded.
"""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("slow_down", "reset", "cut", "stall")
_RESPONSES = {"slow_down": "503 SlowDown", "forbidden": "403 AccessDenied"}
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


class FaultProxy(ThreadingHTTPServer):
    """Serves while its ``with`` block runs.

    Attributes:
        injected: how often each fault was injected.
        passed: how many requests were forwarded without a fault.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        upstream: str,
        share: float = 0.0,
        kinds: Sequence[str] = FAULTS,
        seed: int = 0,
        script: Sequence[str | None] = (),
        stall_s: float = 10.0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.stall_s = stall_s
        self.injected: Counter[str] = Counter()
        self.passed = 0
        self._share, self._kinds = share, tuple(kinds)
        self._script = list(script)
        self._random = random.Random(seed)
        self._draw_lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def draw(self) -> str | None:
        """The fault of the next request, None for none."""
        with self._draw_lock:
            if self._script:
                fault = self._script.pop(0)
            else:
                fault = self._random.choice(self._kinds) if self._random.random() < self._share else None
            if fault:
                self.injected[fault] += 1
            else:
                self.passed += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients close connections that were stalled or cut


@contextlib.contextmanager
def faults_before(upstream: str, **options: object) -> Iterator[FaultProxy]:
    """A FaultProxy that serves while the ``with`` block runs; arguments as FaultProxy's."""
    proxy = FaultProxy(upstream, **options)  # type: ignore[arg-type]
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def _serve(self) -> None:
        body = self._request_body()
        fault = self.server.draw()
        named = _RESPONSES.get(fault or "", fault or "")
        if named[:1].isdigit():
            number, _, code = named.partition(" ")
            xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as injected</Message></Error>"
            self._respond(int(number), [("Content-Type", "application/xml")], xml.encode())
        elif fault == "reset":
            self._reset()
        elif fault == "stall":
            time.sleep(self.server.stall_s)
            self.close_connection = True
        else:
            status, headers, content = self._forward(body)
            self._respond(status, headers, content, cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _request_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _respond(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        if cut and (self.command == "HEAD" or not content):
            self._reset()
            return
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._reset()

    def _reset(self) -> None:
        """Closes the connection with RST, as a crashed machine does."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
