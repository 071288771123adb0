"""The wire models of OpenAI's realtime transcription: a client's events and the settings of a session.

Differences from OpenAI: PCM at 8 and 16 kHz besides 24. The pause that ends speech is the segmenter's; other
settings of ``turn_detection`` are answered with ours.
"""

import base64
import binascii
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from speech.audio.live import LiveFormat
from speech.audio.segmenting import MIN_SILENCE_S, ONSET_PROBABILITY, PADDING_S
from speech.errors import RequestError, first_error
from speech.json_objects import RepeatedNameError, parse_json


class _SessionPart(BaseModel):
    """Part of a session as a client sends it; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class AudioFormat(_SessionPart):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Literal[8000, 16000, 24000] | None = None  # Hz, of PCM only; G.711 is 8000

    def live(self) -> LiveFormat:
        if self.type == "audio/pcm":
            return LiveFormat("pcm16", self.rate or 24_000)
        return LiveFormat("ulaw" if self.type == "audio/pcmu" else "alaw", 8_000)


class Transcription(_SessionPart):
    model: str | None = None
    language: str | None = None  # as of a form without one
    prompt: str = ""
    keywords: tuple[str, ...] = ()


class TurnDetection(_SessionPart):
    """The segmenter's values, whatever the client asks for, so that ``session.updated`` states what is in force."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = ONSET_PROBABILITY
    prefix_padding_ms: int = round(PADDING_S * 1000)
    silence_duration_ms: int = round(MIN_SILENCE_S * 1000)


class Input(_SessionPart):
    format: AudioFormat = AudioFormat()
    transcription: Transcription = Transcription()
    turn_detection: TurnDetection | None = TurnDetection()


class Audio(_SessionPart):
    input: Input = Input()


class Session(_SessionPart):
    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()

    def updated(self, changes: dict[str, Any]) -> Self:
        """The session with a client's changes; fields that they omit keep their values.

        Raises:
            RequestError: ``bad_session``.
        """
        try:
            merged = self.model_validate(_merged(self.model_dump(), changes))
        except ValidationError as error:
            raise RequestError("bad_session", first_error(error, "field {!r} of the session".format)) from error
        if merged.audio.input.turn_detection is None:
            return merged
        in_force = merged.audio.input.model_copy(update={"turn_detection": TurnDetection()})
        return merged.model_copy(update={"audio": Audio(input=in_force)})


def parse_event(text: str) -> dict[str, Any]:
    """A client's event.

    Raises:
        RequestError: ``bad_event``.
    """
    try:
        event = parse_json(text)
    except RepeatedNameError as error:
        raise RequestError("bad_event", f"an event must name each member once: {error}") from error
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
        raise RequestError("bad_event", "an event must be JSON") from error
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise RequestError("bad_event", "an event must be a JSON object with a type")
    if not isinstance(event.get("event_id"), str | None):
        raise RequestError("bad_event", "an event_id must be a string")
    return event


def decode_audio(text: Any) -> bytes:
    """The ``audio`` of an ``input_audio_buffer.append``.

    Raises:
        RequestError: ``bad_event``.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise RequestError("bad_event", "audio must be base64") from error


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``old`` updated with ``new``, nested dicts likewise."""
    nested = {
        name: _merged(value, new[name])
        for name, value in old.items()
        if name in new and isinstance(value, dict) and isinstance(new[name], dict)
    }
    return old | new | nested
