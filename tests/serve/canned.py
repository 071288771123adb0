"""The endpoint's own HTTP on a port of this machine, with two halves whose answers were written before."""

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
from speech.recording import Recording
from speech.transcriber import ClipTranscript
from speech.transcript import Segment, Transcript, Usage

LONGEST_WAIT_S = 30.0


class CannedBackend:
    """Answers every recording with ``segments``; ``failure`` comes after them, or in their place if ``refuses``.

    The channels' names are the recording's. Between two segments it waits while ``held``, which a test clears;
    ``given_up`` tells of a client that has hung up.
    """

    def __init__(self, segments: Sequence[Segment], duration_s: float) -> None:
        self.segments = segments
        self.duration_s = duration_s
        self.failure: RayscribeError | None = None
        self.refuses = False
        self.asked: list[Recording] = []
        self.uploads: list[bytes] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.given_up = threading.Event()

    async def listen(self, recording: Recording, audio: BinaryIO) -> ListenSummary:
        self.asked.append(recording)
        self.uploads.append(audio.read())
        if self.failure and self.refuses:
            raise self.failure
        return ListenSummary(self.duration_s, None)

    async def transcribe(self, recording: Recording, handle: Any) -> Transcript:
        raise AssertionError("the page asks for streams alone")

    async def stream(self, recording: Recording, handle: Any) -> AsyncGenerator[ClipTranscript, None]:
        try:
            for number, segment in enumerate(self.segments):
                if number:
                    await asyncio.to_thread(self.go_on.wait, LONGEST_WAIT_S)
                yield ClipTranscript((_named(segment, recording),), Usage(output_tokens=1))
            if self.failure:
                raise self.failure
        except (asyncio.CancelledError, GeneratorExit):
            self.given_up.set()
            raise


def _named(segment: Segment, recording: Recording) -> Segment:
    return Segment(segment.channel, recording.speaker(segment.channel), segment.start_s, segment.end_s, segment.text)


@contextlib.contextmanager
def served(settings: ServeSettings, backend: CannedBackend) -> Iterator[str]:
    """Serves for as long as it is held; gives the address."""
    app = http_app(settings, TranscriptionService(settings, backend, Mock(spec=RequestMetrics)))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    with socket.socket() as listening:  # connections wait in it until the server is up
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
