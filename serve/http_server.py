"""The HTTP server of ``rayscribe serve`` on one machine: uvicorn, in the Endpoint's replica.

Serve's own proxy (Ray 2.60) puts a body into an unbounded queue as fast as it arrives: an upload of 2.2 GiB that is
refused takes as much memory. uvicorn stops reading from a connection while its request is not read (64 KiB), so
that clients have to wait. On a cluster, where Serve's proxies are on every node, a reverse proxy in front of them
has to hold uploads back (k8s/README.md).
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# The headers of a request must have arrived this long after its connection or its first byte, in seconds. The rest
# of a body that was refused is read, and dropped, for as long, so that the client sees the answer.
HEADER_TIMEOUT_S = 20.0
# Connections beyond this number are answered 503, whatever they ask for.
MAX_CONNECTIONS = 2000
# Of a WebSocket: bytes of one message, which is a minute of PCM at 24 kHz in base64, and messages that wait to be read.
MAX_MESSAGE_BYTES = 4 << 20
MAX_QUEUED_MESSAGES = 2


class HttpServer:
    """Serves an application on the running event loop.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=1024)
        config = uvicorn.Config(
            CancelOnDisconnect(app),
            http=HttpProtocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_max_queue=MAX_QUEUED_MESSAGES,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            reset_contextvars=True,  # the trace of one request is not the next one's
        )
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listening]))

    async def stop(self) -> None:
        """Closes the listening socket and idle connections; returns when the last response is sent."""
        self._server.should_exit = True
        await self._task


class CancelOnDisconnect:
    """Cancels a request whose client disconnects before its response is complete. uvicorn alone would finish it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = asyncio.current_task()
        assert request is not None
        watcher: asyncio.Task[Message] | None = None
        complete = disconnected = False

        async def watch() -> Message:
            nonlocal disconnected
            message = await receive()  # after the body it returns when the client disconnects, or has its response
            if not complete:
                disconnected = True
                request.cancel()
            return message

        async def receive_and_watch() -> Message:
            nonlocal watcher
            if watcher is not None:
                return await asyncio.shield(watcher)
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                watcher = asyncio.create_task(watch())
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal complete
            complete = complete or (message["type"] == "http.response.body" and not message.get("more_body"))
            await send(message)

        try:
            await self._app(scope, receive_and_watch, send_and_note)
        except asyncio.CancelledError:
            if not disconnected:
                raise
        finally:
            if watcher is not None:
                watcher.cancel()


class HttpProtocol(H11Protocol):
    """Closes connections on which the headers of a request take too long (slowloris)."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # the headers are complete
            self._cancel_deadline()
        elif self._deadline is None:
            self._await_headers()

    def handle_websocket_upgrade(self, event: object) -> None:
        self._cancel_deadline()
        super().handle_websocket_upgrade(event)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the replica."""
        yield
