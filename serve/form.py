"""The multipart form of a request for a transcript, as OpenAI's clients send it, with our extensions."""

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from speech.errors import RequestError, first_error
from speech.formats import TranscriptFormat
from speech.recording import Options, Recording, Task

KEYWORDS_PROMPT = "keywords:"
# Fields that are lists. Clients send them as ``name[]``, once for each item.
LIST_FIELDS = frozenset({"keywords", "speakers", "timestamp_granularities", "include"})
# Options that are not fields of the form: the path names the task, timestamp_granularities asks for word times.
NOT_IN_FORM = frozenset({"task", "word_timestamps"})


class SpeechForm(Options):
    """The form besides ``file``, the audio: the options of a recording, and what only OpenAI's form has.

    Decoding is greedy, so ``temperature`` is accepted and has no effect.
    """

    model: str = Field(description="one of GET /v1/models")
    prompt: str = Field("", description="'Keywords: a, b', and nothing else: the models follow no free text")
    response_format: TranscriptFormat = "json"
    temperature: float = Field(0.0, ge=0, le=1, description="no effect: decoding is greedy")
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = Field(
        (), description="verbose_json only; 'word' where the model has word timestamps"
    )
    stream: bool = Field(False, description="answer with server-sent events; response_format stays json")
    chunking_strategy: str | None = Field(None, description="no effect: audio is always cut at pauses")
    include: tuple[str, ...] = Field((), max_length=0, description="nothing can be included")
    speakers: tuple[str, ...] = Field((), max_length=32, description="names by channel")

    @model_validator(mode="before")
    @classmethod
    def _derive_options(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Adds a prompt's keywords to the others, and word_timestamps where they are asked for."""
        keywords = (*fields.get("keywords", ()), _keywords_of_prompt(fields.get("prompt", "")))
        return fields | {
            "keywords": ",".join(part for part in keywords if part.strip()),
            "word_timestamps": "word" in fields.get("timestamp_granularities", ()),
        }

    @classmethod
    def from_fields(cls, fields: Iterable[tuple[str, str]], task: Task) -> Self:
        """Parses a form's fields, in their order and without its file.

        Raises:
            RequestError: ``bad_field`` naming the field; a code of ``Options``; ``unsupported_option`` where
                fields exclude each other.
        """
        form: dict[str, Any] = {}
        for name, value in fields:
            if name in NOT_IN_FORM:
                raise RequestError("bad_field", f"there is no field {name!r}")
            if name.removesuffix("[]") in LIST_FIELDS:
                form.setdefault(name.removesuffix("[]"), []).append(value)
            elif name in form:
                raise RequestError("bad_field", f"field {name!r} is given twice")
            else:
                form[name] = value
        try:
            return cls(**form, task=task)
        except ValidationError as error:
            raise RequestError("bad_field", first_error(error, "field")) from error

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream and self.response_format != "json":
            raise RequestError("unsupported_option", "a streamed answer has response_format json; leave it out")
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise RequestError("unsupported_option", "timestamp_granularities need response_format verbose_json")
        return self

    def recording(self, request_id: str, audio: str) -> Recording:
        """The request as the bulk job has it; ``audio`` is the upload's file name."""
        options = Options(**self.model_dump(include=set(Options.model_fields)))
        return Recording(id=request_id, audio=audio, speakers=self.speakers, options=options)


def form_schema() -> dict[str, Any]:
    """The JSON schema of the whole form, for the OpenAPI description: ``SpeechForm``, as it is sent, and the file."""
    schema = SpeechForm.model_json_schema()
    fields = {
        f"{name}[]" if name in LIST_FIELDS else name: field
        for name, field in schema["properties"].items()
        if name not in NOT_IN_FORM
    }
    file = {"type": "string", "format": "binary", "description": "the audio, in any container and codec"}
    return schema | {"properties": {"file": file, **fields}, "required": ["file", "model"]}


def _keywords_of_prompt(prompt: str) -> str:
    """The keywords that a prompt holds, separated by commas.

    Raises:
        RequestError: ``unsupported_option`` for free text.
    """
    prompt = prompt.strip()
    if prompt and not prompt.lower().startswith(KEYWORDS_PROMPT):
        raise RequestError(
            "unsupported_option", "the models follow no free text: prompt may be 'Keywords: a, b', or use keywords[]"
        )
    return prompt[len(KEYWORDS_PROMPT) :].strip().removesuffix(".")
