"""Live audio over a WebSocket: one session of OpenAI's realtime transcription.

    client                                        server
                                                  session.created
    session.update                                session.updated
    input_audio_buffer.append, or raw bytes       input_audio_buffer.speech_started
                                                  conversation.item.input_audio_transcription.delta …
                                                  input_audio_buffer.speech_stopped, .committed
                                                  conversation.item.input_audio_transcription.completed
    input_audio_buffer.commit                     the same, at once, for the audio up to here
    input_audio_buffer.clear                      input_audio_buffer.cleared

An item is one utterance, ended by a pause (or, without turn detection, all speech before a commit). Items
complete in time order. An utterance that has not ended is decoded from time to time; the words on which two
consecutive hypotheses agree are sent as a delta (LocalAgreement: Macháček et al., arXiv 2307.14743, 2.2).
The transcript of ``completed`` is final and may differ from the deltas before it.

Not in OpenAI's protocol: binary messages, which are audio without base64.
"""

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from serve.backend import Backend
from serve.form import SpeechForm
from serve.http_errors import INTERNAL, ErrorBody
from serve.realtime_events import Session, decode_audio, parse_event
from serve.session_language import SessionLanguage, listened
from speech.audio.clips import Clip
from speech.audio.live import LiveSegmenter
from speech.audio.silero import Silero
from speech.errors import RayscribeError, RequestError
from speech.formats import token_usage
from speech.listener import ListenResult
from speech.recording import Recording
from speech.transcriber import ClipTranscript, segment_separator
from speech.transcript import Usage

# A session from which no message comes for this long is closed.
IDLE_S = 300.0
# Committed items that wait for their transcripts; beyond this no message is read, which is backpressure on the client.
MAX_PENDING_ITEMS = 32
# An unfinished utterance is decoded again when it has grown by this many seconds and by this factor: all partial
# decodings of a clip together cost a few times as much as the last.
PARTIAL_EVERY_S = 1.0
PARTIAL_GROWTH = 1.5

log = logging.getLogger("rayscribe")

TRANSCRIPTION = "conversation.item.input_audio_transcription"

_Decoding = asyncio.Task[tuple[Recording, list[ClipTranscript]]]


@dataclass
class Item:
    """One utterance, from its onset to its transcript."""

    id: str = field(default_factory=lambda: f"item_{uuid.uuid4().hex}")
    sent: list[str] = field(default_factory=list)  # words sent as deltas
    hypothesis: list[str] = field(default_factory=list)  # words of the last partial decoding
    partial_s: float = 0.0  # seconds of speech in the last partial decoding
    partial: asyncio.Task[None] | None = None


class LiveSession:
    """One WebSocket, from accept to close.

    Args:
        websocket: not yet accepted.
        recording_for: the recording that a form describes, and the backend that decodes its clips; raises RequestError
            for an unknown model, or one that does not support what is asked for.
        clip_s: the longest clip that the model takes.
        vad: of ``speech.audio.silero.load_silero``.
        max_audio_s: seconds of audio, after which the session is closed.
        max_session_s: seconds of time, after which the session is closed.
    """

    def __init__(
        self,
        websocket: WebSocket,
        recording_for: Callable[[SpeechForm], tuple[Recording, Backend]],
        clip_s: float,
        vad: Silero,
        max_audio_s: float,
        max_session_s: float,
    ) -> None:
        self._websocket = websocket
        self._recording_for = recording_for
        self._new_segmenter = lambda format: LiveSegmenter(format, clip_s, vad)
        self._max_audio_s = max_audio_s
        self._max_session_s = max_session_s
        self._session = Session()
        self._segmenter = self._new_segmenter(self._session.audio.input.format.live())
        self._recording: Recording  # the settings in force; set before session.created, as is the backend
        self._backend: Backend
        self._warning: dict[str, str] = {}  # of settings without effect, for session.updated
        self._item: Item | None = None  # the utterance that has not ended
        self._uncommitted: list[Clip] = []  # without turn detection: clips since the last commit
        self._committed_s = 0.0  # seconds of audio up to the last commit
        self._last_item: str | None = None
        self._language = SessionLanguage()
        self._pending: asyncio.Queue[tuple[Item, _Decoding]] = asyncio.Queue(MAX_PENDING_ITEMS)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def received_s(self) -> float:
        """Seconds of audio received."""
        return self._segmenter.received_s

    async def run(self) -> None:
        """Serves the client until it disconnects, is idle for ``IDLE_S``, or reaches a limit of the session."""
        offered = self._websocket.scope.get("subprotocols") or []
        await self._websocket.accept("realtime" if "realtime" in offered else None)
        self._start_task(self._send_transcripts())
        try:
            self._recording, self._backend = self._recording_of_session(self._session)
            await self._send("session.created", session=self._session.model_dump())
            async with asyncio.timeout(self._max_session_s) as lifetime:
                await self._handle_messages()
        except WebSocketDisconnect:
            return
        except TimeoutError:
            code, limit = ("session_expired", self._max_session_s) if lifetime.expired() else ("idle_timeout", IDLE_S)
            await self._close(RequestError(code, f"the session is closed after {limit:g} s; open another"))
        except RequestError as error:
            await self._close(error)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)  # gather would replace a cancellation of this task by its own

    async def _handle_messages(self) -> None:
        while self.received_s <= self._max_audio_s:
            async with asyncio.timeout(IDLE_S):
                message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await self._handle_message(message)
        raise RequestError("too_long", f"a session takes {self._max_audio_s:g} s of audio; open another")

    async def _handle_message(self, message: MutableMapping[str, Any]) -> None:
        """Handles one message. An error in it is answered, and the session goes on."""
        if message.get("bytes") is not None:
            await self._append(message["bytes"])
            return
        event_id = None
        try:
            event = parse_event(message.get("text") or "")
            event_id = event.get("event_id")
            await self._handle_event(event)
        except RequestError as error:
            await self._send_error(error, event_id)

    async def _handle_event(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.update":
                await self._update(event.get("session"))
            case "input_audio_buffer.append":
                await self._append(decode_audio(event.get("audio")))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                self._segmenter.finish()
                self._drop_item()
                self._uncommitted.clear()
                await self._send("input_audio_buffer.cleared")
            case other:
                raise RequestError("unknown_event", f"there is no event {str(other)[:80]!r} in a transcription session")

    async def _update(self, changes: Any) -> None:
        if not isinstance(changes, dict):
            raise RequestError("bad_session", "session.update has no session")
        session = self._session.updated(changes)
        recording, backend = self._recording_of_session(session)
        if session.audio.input.format != self._session.audio.input.format:
            if self._segmenter.received_s:
                raise RequestError("bad_session", "the format cannot change after the first audio")
            self._segmenter = self._new_segmenter(session.audio.input.format.live())
        self._session, self._recording, self._backend = session, recording, backend
        await self._send("session.updated", session=session.model_dump(), **self._warning)

    def _recording_of_session(self, session: Session) -> tuple[Recording, Backend]:
        """A session's settings, as a recording, and the backend of its model."""
        transcription = session.audio.input.transcription
        model = transcription.model or self._websocket.query_params.get("model") or ""
        given: dict[str, Any] = {"language": transcription.language} if transcription.language else {}
        form = SpeechForm(model=model, prompt=transcription.prompt, keywords=transcription.keywords, **given)
        found = self._recording_for(form)
        self._warning = {"warning": form.warning} if form.warning else {}
        return found

    async def _append(self, data: bytes) -> None:
        clips = await asyncio.to_thread(self._segmenter.push, data)
        if self._session.audio.input.turn_detection is None:
            self._uncommitted += clips
            return
        for clip in clips:
            await self._end_item(clip)
        unfinished = self._segmenter.partial_clip()
        if unfinished is not None:
            await self._update_partial(unfinished)
        elif self._item is not None:  # the VAD took noise for an onset
            await self._send("input_audio_buffer.speech_stopped", item_id=self._item.id, audio_end_ms=self._now_ms)
            self._drop_item()

    def _drop_item(self) -> None:
        """Forgets the utterance that has not ended: no delta of it is sent any more."""
        if self._item is not None and self._item.partial is not None:
            self._item.partial.cancel()
        self._item = None

    async def _update_partial(self, unfinished: Clip) -> None:
        """Announces an utterance that has begun, and decodes it again when it has grown enough."""
        if self._item is None:
            await self._begin_item(unfinished)
        assert self._item is not None
        item, length_s = self._item, unfinished.end_s - unfinished.start_s
        idle = item.partial is None or item.partial.done()
        if idle and length_s >= max(item.partial_s * PARTIAL_GROWTH, item.partial_s + PARTIAL_EVERY_S):
            item.partial_s = length_s
            item.partial = self._start_task(self._decode_partial(item, unfinished))

    async def _begin_item(self, clip: Clip) -> None:
        self._item = Item()
        await self._send(
            "input_audio_buffer.speech_started", item_id=self._item.id, audio_start_ms=round(clip.start_s * 1000)
        )

    async def _end_item(self, clip: Clip) -> None:
        if self._item is None:
            await self._begin_item(clip)
        assert self._item is not None
        item, self._item = self._item, None
        await self._send("input_audio_buffer.speech_stopped", item_id=item.id, audio_end_ms=round(clip.end_s * 1000))
        await self._commit_item(item, [clip])

    async def _commit(self) -> None:
        if self._segmenter.received_s == self._committed_s:
            raise RequestError("input_audio_buffer_commit_empty", "no audio since the last commit")
        self._committed_s = self._segmenter.received_s
        clips = await asyncio.to_thread(self._segmenter.finish)
        if self._session.audio.input.turn_detection is not None:
            for clip in clips:
                await self._end_item(clip)
            return
        clips, self._uncommitted = self._uncommitted + clips, []
        await self._commit_item(Item(), clips)

    async def _commit_item(self, item: Item, clips: list[Clip]) -> None:
        if item.partial is not None:
            item.partial.cancel()  # the final decoding replaces it
        await self._send("input_audio_buffer.committed", item_id=item.id, previous_item_id=self._last_item)
        self._last_item = item.id
        await self._pending.put((item, self._start_task(self._decode_item(clips, self._language.hear(clips)))))

    async def _send_transcripts(self) -> None:
        """Sends the transcripts of committed items, in their order."""
        while True:
            item, decoding = await self._pending.get()
            try:
                recording, clips = await decoding
            except RayscribeError as error:
                await self._send_failed(item, error)
                continue
            except Exception:
                log.exception("decoding live audio")
                await self._send_failed(item, INTERNAL)
                continue
            texts = [segment.text for clip in clips for segment in clip.segments if segment.text]
            text = segment_separator(recording.options).join(texts)
            usage = sum((clip.usage for clip in clips), Usage())
            words = text.split()
            if words[: len(item.sent)] == item.sent:
                await self._send_delta(item, words)
            await self._send(
                f"{TRANSCRIPTION}.completed",
                item_id=item.id,
                content_index=0,
                transcript=text,
                usage=token_usage(usage),
            )

    async def _send_failed(self, item: Item, error: RayscribeError) -> None:
        details = ErrorBody.of(error).error.model_dump()
        await self._send(f"{TRANSCRIPTION}.failed", item_id=item.id, content_index=0, error=details)

    async def _decode_partial(self, item: Item, clip: Clip) -> None:
        """Decodes an unfinished utterance; sends the words on which this hypothesis and the last agree."""
        with contextlib.suppress(Exception):  # the final decoding reports the error
            words = [
                word
                for decoded in await self._decode(self._language.so_far(self._new_recording()), [clip])
                for segment in decoded.segments
                for word in segment.text.split()
            ]
            agreed = _common_prefix(words, item.hypothesis)
            item.hypothesis = words
            if agreed[: len(item.sent)] == item.sent:
                await self._send_delta(item, agreed)

    async def _send_delta(self, item: Item, words: list[str]) -> None:
        """Sends the words of an item that follow those already sent."""
        if new := words[len(item.sent) :]:
            delta = (" " if item.sent else "") + " ".join(new)
            item.sent = words
            await self._send(f"{TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=delta)

    async def _decode_item(self, clips: list[Clip], heard: ListenResult) -> tuple[Recording, list[ClipTranscript]]:
        """Decodes an utterance. ``heard``: the session's first speech, of whose language it is."""
        recording = await self._language.detect(self._new_recording(), heard, self._backend)
        return recording, await self._decode(recording, clips)

    async def _decode(self, recording: Recording, clips: list[Clip]) -> list[ClipTranscript]:
        async with contextlib.aclosing(self._backend.stream(recording, listened(clips), live=True)) as decoded:
            return [clip async for clip in decoded]

    def _new_recording(self) -> Recording:
        """With the settings in force, and an id of its own."""
        return self._recording.model_copy(update={"id": uuid.uuid4().hex})

    @property
    def _now_ms(self) -> int:
        return round(self._segmenter.received_s * 1000)

    def _start_task(self, work: Any) -> asyncio.Task[Any]:
        """Starts ``work`` as a task that is cancelled when the session ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send_error(self, error: RequestError, event_id: Any = None) -> None:
        await self._send("error", error=ErrorBody.of(error).error.model_dump() | {"event_id": event_id})

    async def _close(self, error: RequestError) -> None:
        await self._send_error(error)
        await self._websocket.close(1000, error.code)

    async def _send(self, type: str, **fields: Any) -> None:
        event = {"type": type, "event_id": f"event_{uuid.uuid4().hex}", **fields}
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # disconnected: receive() raises it
            await self._websocket.send_text(json.dumps(event))  # ASCII: a client's event may hold lone surrogates


def _common_prefix(words: list[str], others: list[str]) -> list[str]:
    """The longest common prefix of two lists of words."""
    same = 0
    for word, other in zip(words, others, strict=False):
        if word != other:
            break
        same += 1
    return words[:same]
