"""The endpoint's HTTP on a local port, over a backend with fixed answers."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, BinaryIO
from unittest.mock import Mock

import uvicorn

from serve.backend import ListenSummary
from serve.metrics import RequestMetrics
from serve.routes import http_app
from serve.service import TranscriptionService
from serve.settings import ServeSettings
from speech.errors import RayscribeError
from speech.listener import ListenResult
from speech.recording import Recording
from speech.transcriber import ClipTranscript
from speech.transcript import Segment, Usage

MAX_WAIT_S = 30.0


class CannedBackend:
    """Answers every recording with ``segments``; raises ``failure`` after them, or instead of them if ``refuses``.

    Speakers are named as the request names them. Before each segment but the first it waits for ``go_on``.

    Attributes:
        requests: the recordings received.
        uploads: their bytes.
        cancelled: set when a client has disconnected.
    """

    local = False

    def __init__(self, segments: Sequence[Segment], duration_s: float) -> None:
        self.segments = segments
        self.duration_s = duration_s
        self.failure: RayscribeError | None = None
        self.refuses = False
        self.requests: list[Recording] = []
        self.uploads: list[bytes] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.cancelled = threading.Event()

    async def listen(self, recording: Recording, audio: BinaryIO, size: int) -> AsyncGenerator[ListenSummary, None]:
        self.requests.append(recording)
        self.uploads.append(audio.read())
        if self.failure and self.refuses:
            raise self.failure
        yield ListenSummary(ListenResult(self.duration_s, self.duration_s, 1, []), None)

    async def detect_language(self, recording: Recording, handle: Any, *, live: bool = False) -> Recording:
        return recording.in_language("sv", 0.9)

    async def transcribe(self, recording: Recording, handle: Any) -> list[ClipTranscript]:
        raise AssertionError("the page requests only streams")

    async def stream(
        self, recording: Recording, handle: Any, *, live: bool = False
    ) -> AsyncGenerator[ClipTranscript, None]:
        try:
            for number, segment in enumerate(self.segments):
                if number:
                    await asyncio.to_thread(self.go_on.wait, MAX_WAIT_S)
                yield ClipTranscript((_named(segment, recording),), Usage(output_tokens=1))
            if self.failure:
                raise self.failure
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


def _named(segment: Segment, recording: Recording) -> Segment:
    return Segment(segment.channel, recording.speaker(segment.channel), segment.start_s, segment.end_s, segment.text)


@contextlib.contextmanager
def served(settings: ServeSettings, backend: CannedBackend) -> Iterator[str]:
    """Serves for the duration of the context; yields the URL."""
    backends = dict.fromkeys((rule.model for rule in settings.rules), backend)
    app = http_app(settings, TranscriptionService(settings, backends, Mock(spec=RequestMetrics)))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    with socket.socket() as listening:  # queues connections until the server is up
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            backend.go_on.set()
            thread.join()
