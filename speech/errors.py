"""The errors of both faces.

    RayscribeError            a code, a message that names the subject and the fix, and the stage
    ├── UsageError            the command, the configuration or the manifest as a whole: nothing was started
    ├── RequestError          one recording's options are invalid or unsupported (row fails; HTTP 4xx)
    ├── AudioError            one recording's audio cannot be decoded       (row fails; HTTP 4xx)
    ├── EngineError           one recording's decoding failed in the engine (row fails; HTTP 5xx)
    └── EngineDied            the engine's process must exit; the row is retried on a new one

Every class takes positional arguments only, so that an error survives pickling between processes
(a Ray actor, a worker pool).
"""

import errno
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError

AUDIO_CODES = frozenset(
    {
        "not_found",
        "forbidden",
        "unreadable",
        "unsupported_codec",
        "truncated",
        "empty",
        "too_long",
        "bad_channel",
        "bad_range",
        "internal",  # a bug of ours
        "listen_timeout",  # of the endpoint: it took too long to decode
        "poison",  # it crashed or hung the process that decoded it
    }
)
REQUEST_CODES = frozenset(
    {
        "bad_row",
        "unsupported_language",
        "unsupported_task",
        "unsupported_option",
        "bad_keywords",
        "no_model",  # of several by rules, none takes the row
    }
)


class RayscribeError(Exception):
    """An error with a code for programs and a message for people.

    Attributes:
        code: stable, snake_case; callers may branch on it.
        message: what failed, with the name of the file or value, and how to fix it.
        stage: where it arose: the output table's ``error.stage``.
    """

    stage: ClassVar[str] = "run"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    def as_struct(self) -> dict[str, str]:
        """The output table's ``error`` column."""
        return {"stage": self.stage, "code": self.code, "message": self.message}


class UsageError(RayscribeError):
    """The command, its configuration or its manifest is invalid; raised before any work starts."""

    stage = "usage"


class RequestError(RayscribeError):
    """One recording's options are malformed, or the model does not support them."""

    stage = "request"


class AudioError(RayscribeError):
    """One recording's audio cannot be opened, decoded or cut as asked. ``code`` is in AUDIO_CODES."""

    stage = "listen"


class StorageError(AudioError):
    """Storage refused one recording's audio or did not respond: credentials, network or disk failed, not the file.

    Others will have it too, so that the job stops where it is frequent (``pipelines.breaker``).
    """


# Of a disk or a mount that fails, and of a machine that is full.
_STORAGE_ERRNOS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
        *(errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)


def audio_error_kind(error: BaseException) -> type[AudioError]:
    """The class of an operating system's error with one recording."""
    return StorageError if getattr(error, "errno", None) in _STORAGE_ERRNOS else AudioError


class EngineError(RayscribeError):
    """The engine failed on one recording and can be used further."""

    stage = "transcribe"


class EngineDied(RayscribeError):  # noqa: N818 - a state of the process, not of a request
    """The engine cannot be used any more. Its process must exit, so that Ray or Serve starts another."""

    stage = "transcribe"


# pydantic's reasons by type, in our words. In braces: the error's context.
_REASONS = {
    "missing": "is missing",
    "extra_forbidden": "is unknown",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be more than {gt:.10g}",
    "greater_than_equal": "must be {ge:.10g} or more",
    "less_than": "must be less than {lt:.10g}",
    "less_than_equal": "must be {le:.10g} or less",
    "too_long": "may have {max_length} items at most",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be an object with names and values",
    "model_type": "must be an object with names and values",
    "model_attributes_type": "must be an object with names and values",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}


def first_error(error: "ValidationError", place: Callable[[str], str]) -> str:
    """The first of pydantic's errors as one sentence: the place, the reason and what was given there.

    Args:
        error: as pydantic raised it.
        place: words for a place, from its path: ``audio.input.rate``. List items are at the place of their list.
    """
    first = error.errors()[0]
    path = ".".join(part for part in first["loc"] if isinstance(part, str))
    reason = _REASONS.get(first["type"], first["msg"]).format(**first.get("ctx", {}))
    given = "" if first["type"] == "missing" else f" (got {reprlib.repr(first['input'])})"
    return f"{place(path)} {reason}{given}"
