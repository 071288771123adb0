"""What can go wrong, said once for both faces.

    RayscribeError            a code, a sentence that names the thing and the fix, the stage it arose in
    ├── UsageError            the command, the configuration or the manifest as a whole: nothing was started
    ├── RequestError          one recording asks for what cannot be done (row fails; HTTP 4xx)
    ├── AudioError            one recording's audio cannot be heard         (row fails; HTTP 4xx)
    ├── EngineError           one recording's decoding failed in the engine (row fails; HTTP 5xx)
    └── EngineDied            the process is finished: exit, start elsewhere, try the row again

Every class is built from positional arguments alone, so that an error crosses a process border
(a Ray actor, a worker pool) and comes back the same.
"""

import reprlib
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
        "internal",  # a fault of ours
        "poison",  # it ended or hung the process that read it
    }
)
REQUEST_CODES = frozenset(
    {
        "bad_row",
        "unsupported_language",
        "unsupported_task",
        "unsupported_option",
        "bad_keywords",
    }
)


class RayscribeError(Exception):
    """An error with a code for programs and a message for people.

    Attributes:
        code: stable, snake_case; callers may branch on it.
        message: what was tried, with the name of the file or value, and what to do about it.
        stage: where it arose, as the output table's ``error.stage`` names it.
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
    """The command, its configuration or its manifest is wrong; found before any work starts."""

    stage = "usage"


class RequestError(RayscribeError):
    """What one recording asks for is malformed, or not among what the model can do."""

    stage = "request"


class AudioError(RayscribeError):
    """One recording's audio cannot be opened, decoded or cut as asked. ``code`` is in AUDIO_CODES."""

    stage = "listen"


class StorageError(AudioError):
    """Storage refused one recording's audio or did not respond: a fault of credentials or network, not of the file."""


class EngineError(RayscribeError):
    """The engine could not finish one recording; the engine itself goes on."""

    stage = "transcribe"


class EngineDied(RayscribeError):  # noqa: N818 - what has happened to the process, not to a request
    """The engine is gone. The process that holds it must exit so that it is started anew elsewhere."""

    stage = "transcribe"


def first_error(error: "ValidationError", what: str, *, whole_path: bool = True) -> str:
    """The first of pydantic's errors as one sentence, with the place, the reason and what was given there.

    Args:
        error: as pydantic raised it.
        what: what the place is: "column", "field", "option".
        whole_path: name the place by its path (``audio.input.rate``), else by the last part alone.
    """
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]] or ["all"]
    place = ".".join(path) if whole_path else path[-1]
    given = "" if first["type"] == "missing" else f" (got {reprlib.repr(first['input'])})"
    return f"{what} {place!r}: {first['msg']}{given}"
