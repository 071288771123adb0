"""One request, from its form to its answer; and one live session.

    admission ──► form, audio on disk ──► can the model do it? ──► Listener ──► engine ──► answer
    503           413, 415, 400           404, 400                 422, 413     500, 503

Independent of Ray: the work is done by a ``Backend``.
"""

import asyncio
import contextlib
import functools
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.status import WS_1013_TRY_AGAIN_LATER
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from serve.backend import Backend
from serve.decoding import Decoding
from serve.form import SpeechForm
from serve.http_errors import INTERNAL, ErrorBody
from serve.limits import AdmissionLimiter, ByteBudget
from serve.live_session import LiveSession
from serve.metrics import LIVE, RequestMetrics
from serve.responses import Capabilities, ModelEntry, SegmentPart, TextDelta, TextDone
from serve.settings import MIB, ServeSettings
from serve.upload import Form, Upload, receive_form
from speech.audio.silero import load_silero
from speech.errors import RayscribeError, RequestError
from speech.formats import CONTENT_TYPES, render_transcript, token_usage
from speech.models.families import Family
from speech.recording import Recording, Task
from speech.transcriber import ClipTranscript, segment_separator, whole_transcript
from speech.transcript import Usage

# Names fields of the request that had no effect. The JSON formats have it as their field ``warning``, too.
WARNING_HEADER = "x-rayscribe-warning"


@dataclass(frozen=True)
class _Model:
    id: str
    family: Family
    backend: Backend


class TranscriptionService:
    """Answers requests.

    Args:
        settings: of the endpoint.
        backends: by model.
        metrics: of requests.

    Raises:
        UsageError: a model is unknown.
    """

    def __init__(self, settings: ServeSettings, backends: Mapping[str, Backend], metrics: RequestMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._models = {
            name: _Model(rule.model, rule.family, backends[rule.model])
            for rule in settings.rules
            for name in (rule.model, *rule.names)
        }
        self._vad = load_silero()
        self._requests = _limiter("requests", settings.max_requests, settings.max_requests_per_key, metrics.in_flight)
        self._sessions = _limiter(
            "live sessions", settings.max_live_sessions, settings.max_live_sessions_per_key, metrics.live_sessions
        )
        self._upload_budget = ByteBudget(settings.max_uploads_mib * MIB)
        limits = settings.max_upload_bytes, settings.max_audio_s
        now = int(time.time())
        self.models = {
            name: ModelEntry(id=name, root=model.id, created=now, rayscribe=Capabilities.of(model.family, *limits))
            for name, model in self._models.items()
        }

    def model(self, name: str) -> ModelEntry:
        """The model of that name.

        Raises:
            RequestError: ``model_not_found``.
        """
        self._model(name)
        return self.models[name]

    def _model(self, name: str) -> "_Model":
        if name not in self._models:
            raise RequestError("model_not_found", f"there is no model {name!r}; there is {', '.join(self._models)}")
        return self._models[name]

    async def answer(self, request: Request, task: Task) -> Response:
        """Answers one request for a transcript, whole or as a stream."""
        try:
            async with contextlib.AsyncExitStack() as resources:
                resources.enter_context(self._requests.acquire(_key_id(request)))
                upload = await resources.enter_async_context(
                    receive_form(request, self._settings, task, self._upload_budget)
                )
                form, decoding = await self._begin(upload, resources)
                start = time.perf_counter()
                headers = {WARNING_HEADER: form.warning} if form.warning else {}
                clips = decoding.clips()
                if form.stream:
                    await resources.enter_async_context(contextlib.aclosing(clips))
                    first = await anext(clips, None)  # an error up to here has an HTTP status of its own
                    events = self._events(decoding, first, clips, start)
                    await resources.enter_async_context(contextlib.aclosing(events))
                    return EventStream(events, resources.pop_all(), headers)
                decoded = [clip async for clip in clips]
                seconds = time.perf_counter() - start
                model = self._model(form.model).id
                transcript = whole_transcript(decoding.recording, model, decoding.listened, decoded, seconds)
                self._metrics.answered(task, decoding.listened.duration_s, seconds)
                content = render_transcript(transcript, form.response_format, form.warning)
                return Response(content, headers=headers, media_type=CONTENT_TYPES[form.response_format])
        except RayscribeError as error:
            self._metrics.refused(task, error.code)
            raise

    async def _begin(self, upload: Upload, resources: contextlib.AsyncExitStack) -> tuple[SpeechForm, Decoding]:
        """Begins to decode an upload, while it arrives if it can; returns when it is complete.

        Args:
            upload: the form.
            resources: close the decoding.
        """
        local = all(model.backend.local for model in self._models.values())
        early, decoding = await upload.early() if local else None, None
        if early is not None:
            with contextlib.suppress(RequestError):  # the complete form may be another one
                decoding = self._decoding(early, resources)
        form = await upload.complete()
        if decoding is None or form != early or decoding.listening_failed:
            if decoding is not None:
                await decoding.aclose()
            decoding = self._decoding(form, resources)
        return form.fields, decoding

    def _decoding(self, form: Form, resources: contextlib.AsyncExitStack) -> Decoding:
        recording, model = self._recording(form.fields, form.name)
        backend = model.backend
        decode = backend.stream if form.fields.stream else functools.partial(_whole_parts, backend)
        parts = backend.listen(recording, form.audio, form.size)
        decoding = Decoding(recording, parts, decode, backend.detect_language)
        resources.push_async_callback(decoding.aclose)
        return decoding

    async def live(self, websocket: WebSocket) -> None:
        """Serves one session of live audio."""
        try:
            with self._sessions.acquire(_key_id(websocket)):
                session = LiveSession(
                    websocket,
                    self._live_recording,
                    self._settings.clip_s,
                    self._vad,
                    self._settings.max_audio_s,
                    self._settings.max_session_s,
                )
                try:
                    await session.run()
                finally:
                    self._metrics.received_live(session.received_s)
        except RequestError as overloaded:
            self._metrics.refused(LIVE, overloaded.code)
            raise WebSocketException(WS_1013_TRY_AGAIN_LATER, overloaded.message) from overloaded

    async def close(self) -> None:
        """Admits no more requests and sessions, and returns when all have ended."""
        await asyncio.gather(self._requests.close(), self._sessions.close())

    def _live_recording(self, form: SpeechForm) -> tuple[Recording, Backend]:
        named = form if form.model else form.model_copy(update={"model": next(iter(self._models))})
        recording, model = self._recording(named, LIVE)
        return recording, model.backend

    def _recording(self, form: SpeechForm, name: str) -> tuple[Recording, "_Model"]:
        """The recording that a form describes, once the model is known to support what it asks for, and the model."""
        model = self._model(form.model)
        subtitled = form.response_format in ("srt", "vtt") and form.task == "transcribe"
        if subtitled and "word_timestamps" in model.family.capabilities:
            form = form.model_copy(update={"word_timestamps": True})  # cues begin and end with words
        recording = form.recording(uuid.uuid4().hex, name, model.family)
        model.family.check(recording.options)
        return recording, model

    async def _events(
        self,
        decoding: Decoding,
        clip: ClipTranscript | None,
        rest: AsyncIterator[ClipTranscript],
        start: float,
    ) -> AsyncGenerator[bytes, None]:
        """A transcript as events; ``clip`` is the first, ``rest`` the others."""
        texts: list[str] = []
        usage = Usage()
        recording = decoding.recording  # in its language by now
        separator = segment_separator(recording.options)
        self._metrics.first_text(time.perf_counter() - start)
        try:
            while clip is not None:
                usage += clip.usage
                for segment in clip.segments:
                    if segment.text:
                        delta = separator + segment.text if texts else segment.text
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
        duration_s = decoding.listened.duration_s
        self._metrics.answered(recording.options.task, duration_s, time.perf_counter() - start)
        yield _event(TextDone(text="".join(texts), duration=duration_s, usage=token_usage(usage)))


class EventStream(StreamingResponse):
    """Server-sent events. ``resources`` are released when the stream has ended, however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], resources: contextlib.AsyncExitStack, headers: Mapping[str, str]
    ) -> None:
        # x-accel-buffering asks proxies that buffer whole responses not to.
        super().__init__(events, headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"})
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            await super().__call__(scope, receive, send)


def _limiter(what: str, most: int, per_key: int | None, observe: Callable[[int], None]) -> AdmissionLimiter:
    return AdmissionLimiter(what, most, max(1, most // 2) if per_key is None else per_key, observe)


def _key_id(connection: HTTPConnection) -> str | None:
    return getattr(connection.state, "key_id", None)


async def _whole_parts(backend: Backend, recording: Recording, handle: Any) -> AsyncGenerator[ClipTranscript, None]:
    """The clips of a part, all in one message."""
    for clip in await backend.transcribe(recording, handle):
        yield clip


def _event(body: TextDelta | TextDone | ErrorBody) -> bytes:
    return f"data: {body.model_dump_json()}\n\n".encode()
