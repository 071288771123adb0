"""OpenAI's audio API as this server speaks it: what comes in, what goes out, what errors look like.

    POST /v1/audio/transcriptions    multipart form (``SpeechForm``) → text in one of five formats, or events
    POST /v1/audio/translations      the same; ``target_language`` says into what (default: en)
    GET  /v1/models                  ``ModelList``; GET /v1/models/{id} one ``ModelEntry``
    GET  /v1/realtime?intent=transcription    WebSocket; its events are in ``serve.realtime``

With keys, every request has ``Authorization: Bearer KEY``. A browser cannot set that header on a WebSocket;
it names the subprotocols ``realtime`` and ``openai-insecure-api-key.KEY`` instead, as with OpenAI.

A streamed answer (``stream=true``) is server-sent events, each a ``data:`` line with a JSON object and an
empty line: ``TextDelta`` for each segment as soon as it is decoded, in the order of time, then one
``TextDone``. An error that is met on the way comes as a last event ``{"error": …}``; one met before the first
segment as a plain HTTP error. What OpenAI has not: ``segment`` in a delta, ``duration`` at the end.

Our extensions to OpenAI's form are documented in ``SpeechForm``; an unchanged client never meets them.
Decoding is greedy, so ``temperature`` is accepted and has no effect.
"""

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speech.errors import AudioError, EngineDied, EngineError, RayscribeError, RequestError, first_error
from speech.formats import TranscriptFormat
from speech.models.families import Family
from speech.recording import Channels, Options, Recording, Task
from speech.transcript import Segment

KEYWORDS_PROMPT = "keywords:"
# Fields of the form that are lists. Clients send them as ``name[]``, once for each item.
LISTS = frozenset({"keywords", "speakers", "timestamp_granularities", "include"})


class SpeechForm(BaseModel):
    """The fields of a request for a transcript besides ``file``, the audio."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="one of GET /v1/models")
    language: str = Field("en", description="language spoken, as an ISO 639-1 code")
    prompt: str = Field("", description="'Keywords: a, b', and nothing else: the models follow no free text")
    response_format: TranscriptFormat = "json"
    temperature: float = Field(0.0, ge=0, le=1, description="no effect: decoding is greedy")
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = Field(
        (), description="verbose_json only; 'word' where the model has the times of words"
    )
    stream: bool = Field(False, description="answer with server-sent events; response_format stays json")
    chunking_strategy: str | None = Field(None, description="no effect: audio is always cut at pauses")
    include: tuple[str, ...] = Field((), max_length=0, description="nothing can be included")

    keywords: tuple[str, ...] = Field((), description="names and terms to listen for")
    channels: Channels = Field("auto", description="auto, split (one speaker a channel), mix or first")
    speakers: tuple[str, ...] = Field((), max_length=32, description="names by channel")
    target_language: str | None = Field(None, description="language to translate into (translations only)")
    punctuation: bool = Field(False, description="ask for punctuation and capitals, where the model has them")
    speaker_tags: bool = Field(False, description="ask the model to tell speakers apart, where it can")

    @classmethod
    def from_fields(cls, fields: Iterable[tuple[str, str]]) -> Self:
        """Reads the fields of a form in their order, without its file.

        Raises:
            RequestError: ``bad_field`` naming the field.
        """
        form: dict[str, Any] = {}
        for name, value in fields:
            if name.removesuffix("[]") in LISTS:
                form.setdefault(name.removesuffix("[]"), []).append(value)
            elif name in form:
                raise RequestError("bad_field", f"field {name!r} is given twice")
            else:
                form[name] = value
        try:
            return cls(**form)
        except ValidationError as error:
            raise RequestError("bad_field", first_error(error, "field")) from error

    def recording(self, request_id: str, audio: str, task: Task) -> Recording:
        """What is asked for, as batch has it.

        Raises:
            RequestError: a code of ``Options``; ``unsupported_option`` where fields do not go together.
        """
        if self.stream and self.response_format != "json":
            raise RequestError("unsupported_option", "a streamed answer has response_format json; leave it out")
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise RequestError("unsupported_option", "timestamp_granularities need response_format verbose_json")
        options = Options(
            language=self.language,
            task=task,
            target_language=self.target_language,
            keywords=",".join(part for part in (*self.keywords, _prompted(self.prompt)) if part.strip()),
            channels=self.channels,
            punctuation=self.punctuation,
            word_timestamps="word" in self.timestamp_granularities,
            speaker_tags=self.speaker_tags,
        )
        return Recording(id=request_id, audio=audio, speakers=self.speakers, options=options)


def form_schema() -> dict[str, Any]:
    """The JSON schema of the whole form, for the OpenAPI description: ``SpeechForm``, as it is sent, and the file."""
    schema = SpeechForm.model_json_schema()
    fields = {f"{name}[]" if name in LISTS else name: field for name, field in schema["properties"].items()}
    file = {"type": "string", "format": "binary", "description": "the audio, in any container and codec"}
    return schema | {"properties": {"file": file, **fields}, "required": ["file", "model"]}


def _prompted(prompt: str) -> str:
    """The keywords that a prompt holds, separated by commas."""
    prompt = prompt.strip()
    if prompt and not prompt.lower().startswith(KEYWORDS_PROMPT):
        raise RequestError(
            "unsupported_option", "the models follow no free text: prompt may be 'Keywords: a, b', or use keywords[]"
        )
    return prompt[len(KEYWORDS_PROMPT) :].strip().removesuffix(".")


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
    """The next segment. The deltas of an answer, joined as they are, make its text."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str
    segment: SegmentPart


class TextDone(BaseModel):
    """The end of a streamed answer: all of its text again."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    duration: float  # seconds of audio
    usage: dict[str, Any]  # speech.formats.token_usage


class Capabilities(BaseModel):
    """What a model can do, and what this server takes. The page at / fills its choices from it."""

    family: str
    languages: list[str]  # ISO 639-1
    translations: list[tuple[str, str]]  # (spoken, into)
    capabilities: list[str]  # keywords, punctuation, word_timestamps, speaker_tags
    max_upload_bytes: int
    max_audio_s: float

    @classmethod
    def of(cls, family: Family, max_upload_bytes: int, max_audio_s: float) -> Self:
        return cls(
            family=family.name,
            languages=sorted(family.languages),
            translations=sorted(family.translations),
            capabilities=sorted(family.capabilities),
            max_upload_bytes=max_upload_bytes,
            max_audio_s=max_audio_s,
        )


class ModelEntry(BaseModel):
    """One model, under one of its names."""

    id: str
    object: Literal["model"] = "model"
    created: int  # seconds since 1970
    owned_by: str = "rayscribe"
    rayscribe: Capabilities


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]


# What only the endpoint refuses a request for, beside the codes of ``speech.errors``.
ENDPOINT_CODES = frozenset(
    {
        "bad_event",
        "bad_field",
        "bad_form",
        "bad_session",
        "forbidden",
        "input_audio_buffer_commit_empty",  # OpenAI's own, of a live session
        "invalid_api_key",
        "model_not_found",
        "not_multipart",
        "overloaded",
        "too_large",
        "too_long",
        "unknown_event",
        "upload_timeout",
    }
)
# HTTP statuses of errors by code; other codes have that of their class.
STATUSES = {
    "invalid_api_key": 401,
    "forbidden": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "upload_timeout": 408,
    "too_large": 413,
    "too_long": 413,
    "not_multipart": 415,
    "unsupported_codec": 415,
    "overloaded": 503,
    "internal": 500,
}
STATUS_OF_CLASS = ((RequestError, 400), (AudioError, 422), (EngineError, 500), (EngineDied, 503))
# What a client is told of an error that nobody foresaw.
INTERNAL = RayscribeError("internal", "a fault of the server's; its log says more")
# A client that was told 503 is asked to come back after so many seconds.
RETRY_AFTER_S = 5


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(BaseModel):
    """Every error's body, whatever its status. ``code`` is ours (the README lists them)."""

    error: ErrorDetail

    @classmethod
    def of(cls, error: RayscribeError) -> Self:
        status = http_status_of(error)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return cls(error=ErrorDetail(message=error.message, type=kind, code=error.code))


def http_status_of(error: RayscribeError) -> int:
    """The HTTP status of an error."""
    by_class = next((status for kind, status in STATUS_OF_CLASS if isinstance(error, kind)), 500)
    return STATUSES.get(error.code, by_class)
