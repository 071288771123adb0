"""The multipart form of a request for a transcript, as OpenAI's clients send it, with our extensions.

Fields that have no effect here are accepted with a warning, which the answer carries (``SpeechForm.warnings``).
Fields whose loss would change the answer are refused, and so are unknown ones: one may be a misspelt option.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from speech.errors import RequestError, first_error
from speech.formats import TranscriptFormat
from speech.models.families import Family
from speech.recording import AUTO, Options, Recording, Task, as_list, clean_keywords

KEYWORDS_PROMPT = "keywords:"
# The subtags after the language in a BCP 47 tag, as in en-US or pt_BR.
REGION = re.compile(r"(?<=^[A-Za-z]{2})[-_][A-Za-z0-9]+")
# Fields that are lists. Clients send them as ``name[]``, once for each item.
LIST_FIELDS = frozenset({"keywords", "speakers", "timestamp_granularities", "include"})
# Fields of the model that are not fields of the form: the path names the task, timestamp_granularities asks for
# word times.
NOT_IN_FORM = frozenset({"task", "word_timestamps", "warnings"})
# Fields of OpenAI's and vLLM's clients that have no effect here: decoding is greedy, and deterministic.
IGNORED_FIELDS = frozenset(
    {
        *("user", "seed", "top_p", "top_k", "min_p", "stream_options"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty"),
        *("stream_include_usage", "stream_continuous_usage_stats"),
    }
)


class SpeechForm(Options):
    """The form besides ``file``, the audio: the options of a recording, and what only OpenAI's form has.

    Decoding is greedy, so ``temperature`` is accepted and has no effect.
    """

    language: str = Field(
        AUTO, description="language spoken, as an ISO 639-1 code; auto: detected, where the model can"
    )
    model: str = Field(description="one of GET /v1/models")
    prompt: str = Field("", description="'Keywords: a, b'; other text has no effect: the models follow no prompt")
    response_format: TranscriptFormat = "json"
    temperature: float = Field(0.0, ge=0, le=1, description="no effect: decoding is greedy")
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = Field(
        (), description="verbose_json only; 'word' where the model has word timestamps"
    )
    stream: bool = Field(False, description="answer with server-sent events; response_format stays json")
    chunking_strategy: str | None = Field(None, description="no effect: audio is always cut at pauses")
    include: tuple[str, ...] = Field((), description="nothing can be included")
    speakers: tuple[str, ...] = Field((), max_length=32, description="names by channel")
    warnings: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _derive_options(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Derives options from OpenAI's fields, and warns of fields without effect."""
        warnings = [*fields.get("warnings", ())]
        prompt = fields.get("prompt", "").strip()
        prompted = prompt.lower().startswith(KEYWORDS_PROMPT)
        if prompt and not prompted:
            warnings.append("prompt has no effect: it may be 'Keywords: a, b'")
        if "chunking_strategy" in fields:
            warnings.append("chunking_strategy has no effect: audio is always cut at pauses")
        if str(fields.get("temperature", "0")).strip(" 0."):  # not zero
            warnings.append("temperature has no effect: decoding is greedy")
        keywords = (*fields.get("keywords", ()), prompt[len(KEYWORDS_PROMPT) :].rstrip(" .") if prompted else "")
        languages = {}
        for name in ("language", "target_language"):
            tag = fields.get(name) or ""
            if region := REGION.search(tag.strip()):
                languages[name] = tag.strip()[: region.start()]
                warnings.append(f"the region in {name} has no effect")
        return (
            fields
            | languages
            | {
                "keywords": [keyword for part in keywords for keyword in clean_keywords(part)],
                "word_timestamps": "word" in fields.get("timestamp_granularities", ()),
                "warnings": warnings,
            }
        )

    @field_validator("include")
    @classmethod
    def _include_nothing(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            raise ValueError("must be left out: there is nothing else to include in an answer")
        return value

    @field_validator("speakers", mode="before")
    @classmethod
    def _split_speakers(cls, value: Any) -> Any:
        """One field may hold all names: ``agent,customer``, or a JSON list."""
        return as_list(value[0]) if len(value) == 1 else value

    @classmethod
    def from_fields(cls, fields: Iterable[tuple[str, str]], task: Task) -> Self:
        """Parses a form's fields, in their order and without its file.

        Raises:
            RequestError: ``bad_field`` naming the field; a code of ``Options``; ``unsupported_option`` where
                fields exclude each other.
        """
        form: dict[str, Any] = {}
        ignored: dict[str, None] = {}
        for full_name, value in fields:
            name, bracket, _ = full_name.partition("[")
            if name in NOT_IN_FORM:
                raise RequestError("bad_field", f"there is no field {name!r}")
            if not value.strip() and name != "speakers":  # as if absent; an empty name is of a channel without one
                continue
            if name in IGNORED_FIELDS:
                ignored[name] = None
            elif full_name.removesuffix("[]") in LIST_FIELDS:
                form.setdefault(name, []).append(value)
            elif name == "chunking_strategy":  # chunking_strategy[type]=server_vad, and further members
                form[name] = value
            elif bracket:
                raise RequestError("bad_field", f"there is no field {full_name[:80]!r}")
            elif name in form:
                raise RequestError("bad_field", f"field {name!r} is given twice")
            else:
                form[name] = value
        try:
            return cls(**form, task=task, warnings=tuple(f"{name} has no effect" for name in ignored))
        except ValidationError as error:
            raise RequestError("bad_field", first_error(error, "field {!r}".format)) from error

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream and self.response_format != "json":
            raise RequestError("unsupported_option", "a streamed answer has response_format json; leave it out")
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise RequestError("unsupported_option", "timestamp_granularities need response_format verbose_json")
        return self

    @property
    def warning(self) -> str:
        """All warnings in one line of ASCII; empty without any."""
        return "; ".join(self.warnings)

    def recording(self, request_id: str, audio: str, family: Family) -> Recording:
        """The request as the bulk job has it.

        Args:
            request_id: its id.
            audio: the upload's file name.
            family: of its model. Where it cannot detect the language, and none is given, it is the job's default.

        Raises:
            RequestError: a code of ``Options``.
        """
        given = self.model_dump(include=set(Options.model_fields), exclude_unset=not family.detects_language)
        options = Options(**{**given, "task": self.task})
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
