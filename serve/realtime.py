"""Live audio over a WebSocket, as OpenAI's realtime transcription sessions have it.

    client                                        server
                                                  session.created
    session.update                                session.updated
    input_audio_buffer.append, or raw bytes       input_audio_buffer.speech_started
                                                  conversation.item.input_audio_transcription.delta …
                                                  input_audio_buffer.speech_stopped, .committed
                                                  conversation.item.input_audio_transcription.completed
    input_audio_buffer.commit                     the same, at once, for what has been said so far
    input_audio_buffer.clear                      input_audio_buffer.cleared

An item is one segment of speech, ended by a pause (or, without turn detection, all that was said before a
commit). Items complete in the order in which they were said. While one is being said it is decoded now and then;
what two such hypotheses agree on is sent as a delta (LocalAgreement: Macháček et al., arXiv 2307.14743, 2.2).
The transcript of ``completed`` is final and may differ from the deltas before it.

What OpenAI has not: PCM at 8 and 16 kHz besides 24, and binary messages, which are audio without base64. The
pause that ends speech is the segmenter's; other settings of ``turn_detection`` are answered with ours.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

from onnxruntime import InferenceSession
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from serve.protocol import INTERNAL, ErrorBody, SpeechForm
from speech.audio.clips import Clip
from speech.audio.live import LiveFormat, LiveSegmenter
from speech.audio.segmenting import MIN_SILENCE_S, ONSET_PROBABILITY, PADDING_S
from speech.errors import RayscribeError, RequestError, first_error
from speech.formats import token_usage
from speech.listener import ListenResult
from speech.recording import Recording
from speech.transcriber import ClipTranscript, segment_separator
from speech.transcript import Usage

# A session that sends nothing for so long is closed.
IDLE_S = 300.0
# Items waiting for the engine, beyond which no more audio is read: the client is held back.
MAX_WAITING = 32
# Speech is decoded again, while it goes on, when it has grown by this much and by half: so all partial
# decodings of a clip together cost a few times what the last one does.
PARTIAL_EVERY_S = 1.0
PARTIAL_GROWTH = 1.5

log = logging.getLogger("rayscribe")

TRANSCRIPTION = "conversation.item.input_audio_transcription"


class Engine(Protocol):
    """``serve.routes.Backend``, of which live audio needs the engine half."""

    def stream(self, recording: Recording, handle: Any) -> AsyncGenerator[ClipTranscript, None]: ...


class _Part(BaseModel):
    """Part of a session as a client gives it; fields that mean nothing here are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class AudioFormat(_Part):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Literal[8000, 16000, 24000] | None = None  # Hz; of PCM alone, as G.711 has 8000

    def live(self) -> LiveFormat:
        if self.type == "audio/pcm":
            return LiveFormat("pcm16", self.rate or 24_000)
        return LiveFormat("ulaw" if self.type == "audio/pcmu" else "alaw", 8_000)


class Transcription(_Part):
    model: str | None = None
    language: str = "en"
    prompt: str = ""
    keywords: tuple[str, ...] = ()


class TurnDetection(_Part):
    """Ours, whatever the client asks for, so that ``session.updated`` tells what is in force."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = ONSET_PROBABILITY
    prefix_padding_ms: int = round(PADDING_S * 1000)
    silence_duration_ms: int = round(MIN_SILENCE_S * 1000)


class Input(_Part):
    format: AudioFormat = AudioFormat()
    transcription: Transcription = Transcription()
    turn_detection: TurnDetection | None = TurnDetection()


class Audio(_Part):
    input: Input = Input()


class Session(_Part):
    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()

    def updated(self, changes: dict[str, Any]) -> Self:
        """The session with a client's changes; what they leave out stays.

        Raises:
            RequestError: ``bad_session``.
        """
        try:
            merged = self.model_validate(_merged(self.model_dump(), changes))
        except ValidationError as error:
            raise RequestError("bad_session", first_error(error, "field of the session")) from error
        if merged.audio.input.turn_detection is None:
            return merged
        ours = merged.audio.input.model_copy(update={"turn_detection": TurnDetection()})
        return merged.model_copy(update={"audio": Audio(input=ours)})


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``old``, changed by ``new`` at every depth."""
    both = {name: value for name, value in old.items() if name in new}
    deeper = {
        name: _merged(value, new[name])
        for name, value in both.items()
        if isinstance(value, dict) and isinstance(new[name], dict)
    }
    return old | new | deeper


@dataclass
class Item:
    """One stretch of speech, from its first sound to its transcript."""

    id: str = field(default_factory=lambda: f"item_{uuid.uuid4().hex}")
    sent: list[str] = field(default_factory=list)  # words sent as deltas
    guess: list[str] = field(default_factory=list)  # words of the last partial decoding
    partial_at_s: float = 0.0  # seconds of speech that were decoded then
    partial: asyncio.Task[None] | None = None


class LiveSession:
    """One WebSocket, from its greeting to its end.

    Args:
        websocket: not yet accepted.
        engine: decodes the clips.
        check: raises RequestError for a recording that the model can't do, or a model that isn't here.
        clip_s: the longest clip that the model takes.
        vad: of ``speech.audio.vad.load_silero``.
        max_audio_s: a session that has sent more is closed.
    """

    def __init__(
        self,
        websocket: WebSocket,
        engine: Engine,
        check: Callable[[SpeechForm], Recording],
        clip_s: float,
        vad: InferenceSession,
        max_audio_s: float,
    ) -> None:
        self._websocket = websocket
        self._engine = engine
        self._check = check
        self._new_segmenter = lambda format: LiveSegmenter(format, clip_s, vad)
        self._max_audio_s = max_audio_s
        self._session = Session()
        self._segmenter = self._new_segmenter(self._session.audio.input.format.live())
        self._recording: Recording  # what the session asks for, known once the client has been greeted
        self._item: Item | None = None  # what is being said
        self._uncommitted: list[Clip] = []  # said, without turn detection
        self._committed_s = 0.0  # of the audio, up to the last commit
        self._last_item: str | None = None
        self._to_answer: asyncio.Queue[tuple[Item, asyncio.Task[list[ClipTranscript]]]] = asyncio.Queue(MAX_WAITING)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def received_s(self) -> float:
        """Seconds of audio that have come."""
        return self._segmenter.received_s

    async def run(self) -> None:
        """Serves the client until it leaves, or has been idle or here for too long."""
        offered = self._websocket.scope.get("subprotocols") or []
        await self._websocket.accept("realtime" if "realtime" in offered else None)
        answering = self._task(self._answer_items())
        try:
            self._recording = self._recording_of(self._session)
            await self._send("session.created", session=self._session.model_dump())
            while self.received_s <= self._max_audio_s:
                async with asyncio.timeout(IDLE_S):
                    message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._take(message)
            raise RequestError("too_long", f"a session takes {self._max_audio_s:g} s of audio; open another")
        except WebSocketDisconnect:
            return
        except TimeoutError:
            await self._websocket.close(1000, "idle")
        except RequestError as error:
            await self._refuse(error)
            await self._websocket.close(1000, error.code)
        finally:
            answering.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, message: MutableMapping[str, Any]) -> None:
        """Does what one message asks; an error in it is answered, and the session goes on."""
        if message.get("bytes") is not None:
            await self._hear(message["bytes"])
            return
        event_id = None
        try:
            event = _read(message.get("text") or "")
            event_id = event.get("event_id")
            await self._do(event)
        except RequestError as error:
            await self._refuse(error, event_id)

    async def _do(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.update":
                await self._update(event.get("session"))
            case "input_audio_buffer.append":
                await self._hear(_audio(event.get("audio")))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                self._segmenter.finish()
                self._item = None
                self._uncommitted.clear()
                await self._send("input_audio_buffer.cleared")
            case other:
                raise RequestError("unknown_event", f"there is no event {str(other)[:80]!r} in a transcription session")

    async def _update(self, changes: Any) -> None:
        if not isinstance(changes, dict):
            raise RequestError("bad_session", "session.update has no session")
        session = self._session.updated(changes)
        recording = self._recording_of(session)
        if session.audio.input.format != self._session.audio.input.format:
            if self._segmenter.received_s:
                raise RequestError("bad_session", "the format cannot change once audio has come")
            self._segmenter = self._new_segmenter(session.audio.input.format.live())
        self._session, self._recording = session, recording
        await self._send("session.updated", session=session.model_dump())

    def _recording_of(self, session: Session) -> Recording:
        """What a session asks for, as a recording."""
        asked = session.audio.input.transcription
        model = asked.model or self._websocket.query_params.get("model") or ""
        return self._check(
            SpeechForm(model=model, language=asked.language, prompt=asked.prompt, keywords=asked.keywords)
        )

    async def _hear(self, data: bytes) -> None:
        clips = await asyncio.to_thread(self._segmenter.push, data)
        if self._session.audio.input.turn_detection is None:
            self._uncommitted += clips
            return
        for clip in clips:
            await self._end_item(clip)
        unfinished = self._segmenter.partial_clip()
        if unfinished is not None:
            await self._follow(unfinished)
        elif self._item is not None:  # it was no speech after all
            await self._send("input_audio_buffer.speech_stopped", item_id=self._item.id, audio_end_ms=self._now_ms)
            self._item = None

    async def _follow(self, unfinished: Clip) -> None:
        """Tells of speech that goes on, and now and then what it says."""
        if self._item is None:
            await self._begin_item(unfinished)
        assert self._item is not None
        item, length_s = self._item, unfinished.end_s - unfinished.start_s
        idle = item.partial is None or item.partial.done()
        if idle and length_s >= max(item.partial_at_s * PARTIAL_GROWTH, item.partial_at_s + PARTIAL_EVERY_S):
            item.partial_at_s = length_s
            item.partial = self._task(self._guess(item, unfinished))

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
            raise RequestError("input_audio_buffer_commit_empty", "no audio has come since the last commit")
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
            item.partial.cancel()  # the engine has better to do
        await self._send("input_audio_buffer.committed", item_id=item.id, previous_item_id=self._last_item)
        self._last_item = item.id
        await self._to_answer.put((item, self._task(self._decode(clips))))

    async def _answer_items(self) -> None:
        """Sends what items say, in their order."""
        while True:
            item, decoding = await self._to_answer.get()
            try:
                clips = await decoding
            except RayscribeError as error:
                await self._fail(item, error)
                continue
            except Exception:
                log.exception("decoding live audio")
                await self._fail(item, INTERNAL)
                continue
            texts = [segment.text for clip in clips for segment in clip.segments if segment.text]
            text = segment_separator(self._recording.options).join(texts)
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

    async def _fail(self, item: Item, error: RayscribeError) -> None:
        details = ErrorBody.of(error).error.model_dump()
        await self._send(f"{TRANSCRIPTION}.failed", item_id=item.id, content_index=0, error=details)

    async def _guess(self, item: Item, clip: Clip) -> None:
        """Decodes speech that goes on, and sends the words that this and the last time agree on."""
        with contextlib.suppress(Exception):  # the whole clip will tell
            words = [
                word
                for decoded in await self._decode([clip])
                for segment in decoded.segments
                for word in segment.text.split()
            ]
            agreed = _common(words, item.guess)
            item.guess = words
            if agreed[: len(item.sent)] == item.sent:
                await self._send_delta(item, agreed)

    async def _send_delta(self, item: Item, words: list[str]) -> None:
        """Sends those of an item's words that have not been sent."""
        if new := words[len(item.sent) :]:
            delta = (" " if item.sent else "") + " ".join(new)
            item.sent = words
            await self._send(f"{TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=delta)

    async def _decode(self, clips: list[Clip]) -> list[ClipTranscript]:
        seconds = sum(clip.end_s - clip.start_s for clip in clips)
        recording = self._recording.model_copy(update={"id": uuid.uuid4().hex})
        listened = ListenResult(duration_s=seconds, speech_s=seconds, channels=1, clips=clips)
        async with contextlib.aclosing(self._engine.stream(recording, listened)) as decoded:
            return [clip async for clip in decoded]

    @property
    def _now_ms(self) -> int:
        return round(self._segmenter.received_s * 1000)

    def _task(self, work: Any) -> asyncio.Task[Any]:
        """Runs ``work`` for as long as the session lasts."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _refuse(self, error: RequestError, event_id: Any = None) -> None:
        await self._send("error", error=ErrorBody.of(error).error.model_dump() | {"event_id": event_id})

    async def _send(self, type: str, **fields: Any) -> None:
        event = {"type": type, "event_id": f"event_{uuid.uuid4().hex}", **fields}
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has left; receive() will tell
            await self._websocket.send_text(json.dumps(event, ensure_ascii=False))


def _read(text: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except ValueError as error:
        raise RequestError("bad_event", "an event must be JSON") from error
    if not isinstance(event, dict) or "type" not in event:
        raise RequestError("bad_event", "an event must be a JSON object with a type")
    return event


def _audio(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise RequestError("bad_event", "audio must be base64") from error


def _common(words: list[str], others: list[str]) -> list[str]:
    """The words that both begin with."""
    same = 0
    for word, other in zip(words, others, strict=False):
        if word != other:
            break
        same += 1
    return words[:same]
