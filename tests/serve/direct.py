"""The endpoint without Ray: its HTTP in this process, over the real Listener and a given engine."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, BinaryIO

from starlette.testclient import TestClient

from serve.backend import ListenSummary
from serve.growing_file import LocalFile
from serve.metrics import RequestMetrics
from serve.routes import http_app
from serve.service import TranscriptionService
from serve.settings import ServeSettings
from speech.engines.base import Engine
from speech.listener import Listener, ListenResult
from speech.models.families import GRANITE_4_0, Family
from speech.recording import Recording
from speech.transcriber import ClipTranscript, Transcriber
from testing.synthetic_audio import call, sndfile

# A call of four turns, agent on the left and customer on the right.
CALL = sndfile(call(exchanges=2)[0], "WAV", "ULAW")
MODEL = "demo/model"


class DirectBackend:
    """``serve.backend.Backend`` in this process."""

    def __init__(
        self,
        engine: Engine,
        max_audio_s: float = 3600.0,
        model: str = MODEL,
        family: Family = GRANITE_4_0,
        local: bool = False,
    ) -> None:
        self.local = local
        self.listener = Listener(clip_s=family.clip_s, max_duration_s=max_audio_s)
        self._engine, self._model, self._family = engine, model, family
        self._transcriber: Transcriber | None = None

    @property
    def transcriber(self) -> Transcriber:
        if self._transcriber is None:
            self._transcriber = Transcriber(self._engine, self._family, self._model, concurrent_clips=8)
        return self._transcriber

    async def listen(self, recording: Recording, audio: BinaryIO, size: int) -> AsyncGenerator[ListenSummary, None]:
        with LocalFile.of(audio, size).open() if self.local else contextlib.nullcontext(audio) as source:
            parts = self.listener.stream(recording, source)
            while (part := await asyncio.to_thread(next, parts, None)) is not None:
                yield ListenSummary.of(part, part)

    async def detect_language(self, recording: Recording, handle: Any, *, live: bool = False) -> Recording:
        return await self.transcriber.detect_language(recording, handle, live=live)

    async def transcribe(self, recording: Recording, handle: Any) -> list[ClipTranscript]:
        return [clip async for clip in self.transcriber.stream(recording, handle)]

    def stream(
        self, recording: Recording, handle: ListenResult, *, live: bool = False
    ) -> AsyncGenerator[ClipTranscript, None]:
        return self.transcriber.stream(recording, handle, live=live)


def client_of(engine: Engine, /, *, peer: str = "127.0.0.1", **settings: Any) -> TestClient:
    """A client of an endpoint with these settings; ``peer`` is the client's address."""
    asked = ServeSettings.from_settings(settings if "models" in settings else {"model": MODEL, **settings})
    backends = {rule.model: DirectBackend(engine, asked.max_audio_s, rule.model, rule.family) for rule in asked.rules}
    app = http_app(asked, TranscriptionService(asked, backends, RequestMetrics()))
    return TestClient(app, base_url="http://localhost:8000", client=(peer, 5000), raise_server_exceptions=False)


def post(client: TestClient, path: str = "transcriptions", audio: bytes | None = None, **fields: Any) -> Any:
    """Requests a transcript, of ``CALL`` unless other audio is given."""
    data = {"model": MODEL, **fields}
    upload = ("call.wav", CALL if audio is None else audio)
    return client.post(f"/v1/audio/{path}", data=data, files={"file": upload})
