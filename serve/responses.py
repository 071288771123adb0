"""What the endpoint answers besides transcripts in the formats of ``speech.formats``: events, models, capabilities.

A streamed answer (``stream=true``) is server-sent events, each a ``data:`` line with a JSON object and an
empty line: ``TextDelta`` for each segment as soon as it is decoded, in time order, then one ``TextDone``. An
error after the first event is a last event ``{"error": …}``; one before it is a plain HTTP error. Fields that
OpenAI's events do not have: ``segment`` in a delta, ``duration`` at the end.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel

from speech.models.families import Family
from speech.transcript import Segment


class SegmentPart(BaseModel):
    """One segment of a streamed transcript: seconds from the start of the file, channel from 0."""

    channel: int
    speaker: str | None
    start: float
    end: float
    text: str

    @classmethod
    def of(cls, segment: Segment) -> Self:
        return cls(
            channel=segment.channel,
            speaker=segment.speaker,
            start=segment.start_s,
            end=segment.end_s,
            text=segment.text,
        )


class TextDelta(BaseModel):
    """The next segment. The deltas of an answer, concatenated, are its text."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str
    segment: SegmentPart


class TextDone(BaseModel):
    """The end of a streamed answer, with its whole text."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    duration: float  # seconds of audio
    usage: dict[str, Any]  # speech.formats.token_usage


class Capabilities(BaseModel):
    """What a model can do, and this server's limits. The page at / builds its choices from it."""

    family: str
    languages: list[str]  # ISO 639-1
    translations: list[tuple[str, str]]  # (source, target)
    capabilities: list[str]  # keywords, punctuation, word_timestamps, speaker_tags
    detects_language: bool  # language may be auto, or left out
    max_upload_bytes: int
    max_audio_s: float

    @classmethod
    def of(cls, family: Family, max_upload_bytes: int, max_audio_s: float) -> Self:
        return cls(
            family=family.name,
            languages=sorted(family.languages),
            translations=sorted(family.translations),
            capabilities=sorted(family.capabilities),
            detects_language=family.detects_language,
            max_upload_bytes=max_upload_bytes,
            max_audio_s=max_audio_s,
        )


class ModelEntry(BaseModel):
    """One model, under one of its names."""

    id: str
    object: Literal["model"] = "model"
    root: str  # the model that has this name, as in vLLM's list
    created: int  # seconds since 1970
    owned_by: str = "rayscribe"
    rayscribe: Capabilities


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]
