"""One recording and the options that it is transcribed with: the request.

``Options`` defines every per-recording option. The command line, the YAML of ``--config``, a manifest
row and an HTTP form all build one, so that each default, help text and check is defined once, here.
Whether a *model* supports the options is checked in ``speech.models.families``.
"""

import ast
import contextlib
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from speech.errors import RequestError, first_error
from speech.raw_format import parse_raw_format
from speech.redaction import redact_presigned

Channels = Literal["auto", "split", "mix", "first"]
Task = Literal["transcribe", "translate"]
AUTO = "auto"  # the language that the model is to detect

# Prompt and audio share Granite's context of 4096 tokens.
MAX_KEYWORDS = 200
MAX_KEYWORD_CHARS = 100
# No recorder writes a file this long (30 years); larger numbers overflow the decoders' counts of frames.
MAX_OFFSET_S = 1e9


def as_list(value: Any) -> Any:
    """A list that is given as text, as CSV cells and form fields have it; any other value unchanged.

    Text in brackets is a list in JSON or, as pandas writes lists into CSV, in Python's syntax. All other text
    is split at commas.

    Raises:
        ValueError: text in brackets is neither.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [item.strip() for item in text.split(",")] if text else []
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        if not re.search(r"""['"]\s+['"]""", text):  # a numpy array, whose strings Python would concatenate
            return ast.literal_eval(text)
    raise ValueError(f'{reprlib.repr(text)} is not a list: write ["a", "b"], or a, b without brackets')


def clean_keywords(keywords: str | Iterable[str]) -> tuple[str, ...]:
    """Keywords for the prompt: whitespace collapsed, duplicates dropped, order kept.

    Text is read by ``as_list``. The rules are those of IBM's ``granite_speech.prompts``.

    Raises:
        RequestError: ``bad_keywords`` for text in brackets that is no list; for a keyword that is empty, too
            long, or contains a comma, a control character or ``<|``; or for too many keywords.
    """
    try:
        keywords = as_list(keywords)
    except ValueError as error:
        raise RequestError("bad_keywords", str(error)) from error
    cleaned: dict[str, None] = {}
    if not isinstance(keywords, Iterable):
        raise RequestError("bad_keywords", f"keywords must be a list, or text split at commas, not {keywords!r}")
    for keyword in keywords:
        if not isinstance(keyword, str):
            raise RequestError("bad_keywords", f"a keyword must be text, not {keyword!r}")
        folded = " ".join(keyword.split())
        if not folded:
            raise RequestError("bad_keywords", "a keyword is empty; remove the extra comma or the blank entry")
        if "," in folded or not folded.isprintable() or "<|" in folded:
            raise RequestError("bad_keywords", f"keyword {folded!r} contains a comma, a control character or '<|'")
        if len(folded) > MAX_KEYWORD_CHARS:
            raise RequestError("bad_keywords", f"keyword {folded[:20]!r}… has over {MAX_KEYWORD_CHARS} characters")
        cleaned[folded] = None
    if len(cleaned) > MAX_KEYWORDS:
        raise RequestError("bad_keywords", f"{len(cleaned)} keywords given, at most {MAX_KEYWORDS} are allowed")
    return tuple(cleaned)


class Options(BaseModel):
    """How one recording is transcribed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: str = Field(
        "en", description="language spoken, as an ISO 639-1 code; auto: detected, by a model that can (Whisper)"
    )
    task: Task = Field("transcribe", description="transcribe the speech, or translate it")
    target_language: str | None = Field(
        None, description="language to translate into (default: en when the speech is not English)"
    )
    keywords: tuple[str, ...] = Field((), description="names and terms to recognise, separated by commas")
    channels: Channels = Field(
        "auto",
        description="auto: transcribe channels separately when they differ, dual mono once; "
        "split: always transcribe channels separately; mix: average them; first: only the first",
    )
    punctuation: bool = Field(False, description="ask for punctuation and capitals, where the model has them")
    word_timestamps: bool = Field(
        False, description="the time and confidence of every word (Granite models; transcription)"
    )
    speaker_tags: bool = Field(False, description="ask the model for speaker labels, where it has them")
    raw_format: str | None = Field(
        None,
        description="format of audio without a header whose name does not have it: g722, ulaw, sln16 …, "
        "or with rate and channels: sln:16000:2",
    )

    @field_validator("language", "target_language")
    @classmethod
    def _fold_language(cls, value: str | None) -> str | None:
        return value.strip().lower() if value is not None else None

    @field_validator("keywords", mode="before")
    @classmethod
    def _clean_keywords(cls, value: Any) -> Any:
        return clean_keywords(value if value is not None else ())

    @field_validator("raw_format")
    @classmethod
    def _check_raw_format(cls, value: str | None) -> str | None:
        if value is not None:
            parse_raw_format(value)
        return value

    @model_validator(mode="after")
    def _default_target(self) -> Self:
        if self.task == "translate" and self.target_language is None:
            if self.language == "en":
                raise RequestError(
                    "unsupported_task", "to translate English speech, say into what: set target_language"
                )
            object.__setattr__(self, "target_language", "en")
        if self.task == "transcribe" and self.target_language not in (None, self.language):
            raise RequestError("unsupported_task", f"target_language {self.target_language!r} needs task 'translate'")
        return self


class Recording(BaseModel):
    """One audio file, or a range of one, and how to transcribe it: a parsed manifest row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    audio: str = Field(description="URI or path")
    offset: float = Field(0.0, ge=0, le=MAX_OFFSET_S, allow_inf_nan=False, description="seconds into the file")
    duration: float | None = Field(None, gt=0, allow_inf_nan=False, description="seconds to read; None: to the end")
    speakers: tuple[str, ...] = Field((), description="names by channel")
    text: str | None = Field(None, description="reference text, for evaluate")
    options: Options = Options()
    metadata: dict[str, Any] = Field(default_factory=dict, description="every other column, unchanged")
    language_probability: float | None = Field(None, description="of the language, where a model has detected it")

    @field_validator("speakers", mode="before")
    @classmethod
    def _parse_speakers(cls, value: Any) -> Any:
        return as_list(value)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], defaults: Options) -> Self:
        """Parses one manifest row; its options override ``defaults``.

        NeMo's ``audio_filepath`` is an alias of ``audio``. A cell that is None or NaN (as CSV and Parquet
        write a missing value) is absent. Columns that are not fields go to ``metadata``.

        Raises:
            RequestError: ``bad_row`` naming the column, also for text that is not valid Unicode; or a code of
                ``clean_keywords`` and ``Options``.
        """
        cells = {key: value for key, value in row.items() if not _is_missing(value)}
        _check_unicode(cells)
        audio = cells.pop("audio", None) or cells.pop("audio_filepath", None)
        if not audio or (isinstance(audio, str) and not audio.strip()):
            raise RequestError("bad_row", "the row has no 'audio' (nor 'audio_filepath'): give a URI or a path")
        if not isinstance(audio, str):
            raise RequestError("bad_row", f"column 'audio' must be text, a URI or a path (got {reprlib.repr(audio)})")
        if "\0" in audio:
            raise RequestError("bad_row", "column 'audio' holds a NUL character, which no path can")
        fields: dict[str, Any] = {"audio": audio.strip()}
        for name in ("offset", "duration", "speakers", "text"):
            if name in cells:
                fields[name] = cells.pop(name)
        fields["id"] = row_id(row)
        cells.pop("id", None)
        fields["options"] = row_options(cells, defaults)
        metadata = {name: cell for name, cell in cells.items() if name not in Options.model_fields}
        try:
            return cls(**fields, metadata=metadata)
        except ValidationError as error:
            raise RequestError("bad_row", first_error(error, "column {!r}".format)) from error

    @classmethod
    def malformed(cls, row: Mapping[str, Any]) -> Self:
        """A recording for a row that ``from_row`` rejects, so that the row can be reported as failed. Never raises."""
        audio = row.get("audio") or row.get("audio_filepath") or ""
        metadata = {
            escape_surrogates(name): cell if _is_unicode(cell) else escape_surrogates(_as_text(cell))
            for name, cell in row.items()
            if name not in cls.model_fields
        }
        return cls(id=row_id(row), audio=escape_surrogates(str(audio)), metadata=metadata)

    def in_language(self, language: str, probability: float) -> Self:
        """The recording once its language has been detected. A translation into that language is a transcription."""
        known: dict[str, Any] = {"language": language}
        if self.options.target_language == language:
            known |= {"task": "transcribe", "target_language": None}
        options = self.options.model_copy(update=known)
        return self.model_copy(update={"options": options, "language_probability": probability})

    def speaker(self, channel: int) -> str | None:
        """The channel's speaker name, or None."""
        return self.speakers[channel] or None if channel < len(self.speakers) else None

    def metadata_json(self) -> str:
        """``metadata`` as JSON, presigned links without their query.

        Values that JSON cannot represent (dates, decimals) are written as their str.
        """
        return redact_presigned(json.dumps(self.metadata, ensure_ascii=False, default=str, sort_keys=True))


def row_options(row: Mapping[str, Any], defaults: Options) -> Options:
    """The options of a manifest row, which override ``defaults``.

    Raises:
        RequestError: ``bad_row`` naming the column, or a code of ``Options``.
    """
    given = {name: row[name] for name in Options.model_fields if not _is_missing(row.get(name))}
    inherited = defaults.model_dump(exclude_unset=True)
    if "task" in given:  # a row with its own task does not inherit the run's target_language
        inherited.pop("target_language", None)
    try:
        return Options(**{**inherited, **given})
    except ValidationError as error:
        raise RequestError("bad_row", first_error(error, "column {!r}".format)) from error


def row_id(row: Mapping[str, Any]) -> str:
    """The row's ``id``, or else the first 16 hex digits of a SHA-256.

    The hash is over URI and offset, or over the whole row if it has no audio. Stable across runs. Never
    raises: a malformed row is reported under its id, too.
    """
    given = row.get("id")
    if not _is_missing(given) and str(given).strip():
        return escape_surrogates(str(given).strip())
    audio, offset = row.get("audio") or row.get("audio_filepath"), row.get("offset")
    if not audio:
        hashed = json.dumps(dict(row), default=str, sort_keys=True)
    else:
        with contextlib.suppress(TypeError, ValueError):  # 30, "30" and 30.0 are the same offset
            offset = float(0.0 if _is_missing(offset) else offset)  # type: ignore[arg-type]
        hashed = f"{str(audio).strip()}\n{offset}"
    return hashlib.sha256(hashed.encode(errors="surrogatepass")).hexdigest()[:16]


def escape_surrogates(text: str) -> str:
    r"""Text with lone surrogates written as ``\udcXX``: Parquet and UTF-8 cannot represent them.

    Python reads bytes of file names that are not UTF-8 as lone surrogates (PEP 383); JSON may contain them, too.
    """
    return text.encode(errors="backslashreplace").decode()


def _check_unicode(cells: Mapping[str, Any]) -> None:
    for name, cell in cells.items():
        if not (_is_unicode(name) and _is_unicode(cell)):
            raise RequestError(
                "bad_row",
                f"column '{escape_surrogates(name)}' is not valid Unicode text: save names and cells in UTF-8",
            )


def _is_unicode(cell: Any) -> bool:
    """Whether all text in a cell can be encoded: it contains no lone surrogates."""
    text = _as_text(cell)
    return text == escape_surrogates(text)


def _as_text(cell: Any) -> str:
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
