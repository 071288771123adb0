"""The endpoint's HTTP: what OpenAI's clients call, and the page at /.

    upload ──► place? ──► form, audio on disk ──► what the model can do? ──► Listener ──► engine ──► answer
               503        413, 415, 400           404, 400                   422, 413     500, 503

Nothing here knows Ray: ``Backend`` are the two halves of Rayscribe, wherever they run.
"""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from fastapi import APIRouter, Depends, FastAPI
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.status import WS_1013_TRY_AGAIN_LATER
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from serve.auth import ApiKeys, Authenticator
from serve.limits import AdmissionLimiter
from serve.metrics import RequestMetrics
from serve.protocol import (
    INTERNAL,
    RETRY_AFTER_S,
    Capabilities,
    ErrorBody,
    ModelEntry,
    ModelList,
    SegmentPart,
    SpeechForm,
    TextDelta,
    TextDone,
    form_schema,
    http_status_of,
)
from serve.realtime import LiveSession
from serve.settings import ServeSettings
from serve.upload import receive_form
from speech.audio.vad import load_silero
from speech.errors import RayscribeError, RequestError
from speech.formats import CONTENT_TYPES, render_transcript, token_usage
from speech.listener import ListenResult
from speech.models.checkpoint import family_of
from speech.preflight import check_request
from speech.recording import Recording, Task
from speech.transcriber import ClipTranscript, segment_separator
from speech.transcript import Transcript, Usage

# What metrics and messages call audio that comes in while it is spoken.
LIVE = "live"
PAGE = Path(__file__).parent / "playground"


@dataclass(frozen=True)
class Listened:
    """What the CPU half has heard, and the same as the engine half takes it.

    ``handle`` is a reference where the halves are apart, so that the audio is not sent through here twice.
    """

    listened: ListenResult
    handle: Any


class Backend(Protocol):
    """The two halves of Rayscribe. Each method raises as the class behind it does."""

    async def listen(self, recording: Recording, audio: BinaryIO) -> Listened:
        """``speech.listener.Listener.listen``"""

    async def transcribe(self, recording: Recording, handle: Any) -> Transcript:
        """``speech.transcriber.Transcriber.transcribe``"""

    def stream(self, recording: Recording, handle: Any) -> AsyncGenerator[ClipTranscript, None]:
        """``speech.transcriber.Transcriber.stream``"""


def http_app(settings: ServeSettings, service: "TranscriptionService") -> FastAPI:
    """The endpoint as an ASGI application.

    Raises:
        UsageError: the keys cannot be read.
    """
    access = Authenticator(ApiKeys(settings.api_keys) if settings.api_keys else None)
    router = APIRouter(prefix="/v1", dependencies=[Depends(access.check)])
    form = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form_schema()}}}}

    @router.post("/audio/transcriptions", openapi_extra=form, response_class=Response)
    async def transcriptions(request: Request) -> Response:
        """What was said, written down."""
        return await service.answer(request, "transcribe")

    @router.post("/audio/translations", openapi_extra=form, response_class=Response)
    async def translations(request: Request) -> Response:
        """What was said, in another language."""
        return await service.answer(request, "translate")

    @router.get("/models")
    async def models() -> ModelList:
        """The model, once for each of its names."""
        return ModelList(data=list(service.models.values()))

    @router.get("/models/{name:path}")
    async def model(name: str) -> ModelEntry:
        """One model."""
        return service.model(name)

    @router.websocket("/realtime")
    async def realtime(websocket: WebSocket) -> None:
        await service.live(websocket)

    # The interactive documentation would load its scripts from another host.
    app = FastAPI(title="Rayscribe", docs_url=None, redoc_url=None)
    app.include_router(router)
    app.add_exception_handler(RayscribeError, _refused)
    app.add_exception_handler(HTTPException, _refused_by_framework)
    app.add_exception_handler(Exception, _failed)
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


class TranscriptionService:
    """Answers requests: takes what is asked in, has the halves work on it, hands the answer out.

    Raises:
        UsageError: the model is unknown.
    """

    def __init__(self, settings: ServeSettings, backend: Backend, metrics: RequestMetrics) -> None:
        self._settings = settings
        self._model = settings.engine_config.model
        self._backend = backend
        self._metrics = metrics
        self._family = family_of(self._model)
        self._vad = load_silero()
        self.limiter = AdmissionLimiter(settings.max_requests, metrics)
        abilities = Capabilities.of(self._family, settings.max_upload_bytes, settings.max_audio_s)
        now = int(time.time())
        self.models = {
            name: ModelEntry(id=name, created=now, rayscribe=abilities) for name in (self._model, *settings.names)
        }

    def model(self, name: str) -> ModelEntry:
        """The model of that name.

        Raises:
            RequestError: ``model_not_found``.
        """
        if name not in self.models:
            raise RequestError("model_not_found", f"there is no model {name!r}; there is {', '.join(self.models)}")
        return self.models[name]

    async def answer(self, request: Request, task: Task) -> Response:
        """Answers one request for a transcript, whole or as a stream."""
        try:
            async with contextlib.AsyncExitStack() as held:
                held.enter_context(self.limiter.acquire())
                form, name, audio = await held.enter_async_context(receive_form(request, self._settings))
                start = time.perf_counter()
                recording = self._recording(form, name, task)
                listened = await self._backend.listen(recording, audio)
                if form.stream:
                    clips = self._backend.stream(recording, listened.handle)
                    await held.enter_async_context(contextlib.aclosing(clips))
                    first = await anext(clips, None)  # what fails so far is answered with a status of its own
                    events = self._events(recording, listened.listened, first, clips, start)
                    await held.enter_async_context(contextlib.aclosing(events))
                    return EventStream(events, held.pop_all())
                transcript = await self._backend.transcribe(recording, listened.handle)
                self._metrics.answered(task, listened.listened.duration_s, time.perf_counter() - start)
                return Response(
                    render_transcript(transcript, form.response_format), media_type=CONTENT_TYPES[form.response_format]
                )
        except RayscribeError as error:
            self._metrics.refused(task, error.code)
            raise

    async def live(self, websocket: WebSocket) -> None:
        """Serves one session of live audio."""
        try:
            with self.limiter.acquire():
                session = LiveSession(
                    websocket,
                    self._backend,
                    self._live_recording,
                    self._family.clip_s,
                    self._vad,
                    self._settings.max_audio_s,
                )
                try:
                    await session.run()
                finally:
                    self._metrics.received_live(session.received_s)
        except RequestError as full:
            self._metrics.refused(LIVE, full.code)
            raise WebSocketException(WS_1013_TRY_AGAIN_LATER, full.message) from full

    def _live_recording(self, form: SpeechForm) -> Recording:
        return self._recording(form if form.model else form.model_copy(update={"model": self._model}), LIVE)

    def _recording(self, form: SpeechForm, name: str, task: Task = "transcribe") -> Recording:
        """What is asked for, if the model can do it."""
        self.model(form.model)
        recording = form.recording(uuid.uuid4().hex, name, task)
        check_request(self._family, self._settings.engine_config.speculation, recording.options)
        return recording

    async def _events(
        self,
        recording: Recording,
        listened: ListenResult,
        clip: ClipTranscript | None,
        rest: AsyncIterator[ClipTranscript],
        start: float,
    ) -> AsyncGenerator[bytes, None]:
        """A transcript as events, ``clip`` being the first of it."""
        texts: list[str] = []
        usage = Usage()
        between = segment_separator(recording.options)
        self._metrics.first_text(time.perf_counter() - start)
        try:
            while clip is not None:
                usage += clip.usage
                for segment in clip.segments:
                    if segment.text:
                        delta = between + segment.text if texts else segment.text
                        texts.append(delta)
                        yield _event(TextDelta(delta=delta, segment=SegmentPart.of(segment)))
                clip = await anext(rest, None)
        except RayscribeError as error:
            self._metrics.refused(recording.options.task, error.code)
            yield _event(ErrorBody.of(error))
            return
        except Exception:
            self._metrics.refused(recording.options.task, INTERNAL.code)
            yield _event(ErrorBody.of(INTERNAL))
            raise
        self._metrics.answered(recording.options.task, listened.duration_s, time.perf_counter() - start)
        yield _event(TextDone(text="".join(texts), duration=listened.duration_s, usage=token_usage(usage)))


class EventStream(StreamingResponse):
    """Server-sent events. What is ``held`` is let go when the stream has ended, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], held: contextlib.AsyncExitStack) -> None:
        # Proxies that hold answers back until they are whole are asked not to.
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


def _event(body: TextDelta | TextDone | ErrorBody) -> bytes:
    return f"data: {body.model_dump_json()}\n\n".encode()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RayscribeError)
    status = http_status_of(error)
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
    return JSONResponse(ErrorBody.of(error).model_dump(), status, headers)


async def _refused_by_framework(request: Request, error: Exception) -> Response:
    """No such path, or no such method on it."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    body = ErrorBody.of(RequestError(code, f"{request.method} {request.url.path}: {error.detail}"))
    return JSONResponse(body.model_dump(), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """What nobody foresaw; Starlette raises it again, and Serve logs it."""
    return JSONResponse(ErrorBody.of(INTERNAL).model_dump(), http_status_of(INTERNAL))
