"""Errors as HTTP: the status of each code, and the body that OpenAI's clients parse."""

from typing import Self

from pydantic import BaseModel

from speech.errors import AudioError, EngineDied, EngineError, RayscribeError, RequestError

# Codes that only the endpoint has, besides those of ``speech.errors``.
ENDPOINT_CODES = frozenset(
    {
        "bad_event",
        "bad_field",
        "bad_form",
        "bad_session",
        "forbidden",
        "idle_timeout",
        "input_audio_buffer_commit_empty",  # OpenAI's own code, in live sessions
        "invalid_api_key",
        "model_not_found",
        "not_multipart",
        "overloaded",
        "session_expired",
        "too_large",
        "too_long",
        "too_many_requests",
        "unknown_event",
        "upload_timeout",
    }
)
# HTTP statuses by error code; other codes have the status of their class.
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
    "too_many_requests": 429,
    "overloaded": 503,
    "internal": 500,
}
STATUS_OF_CLASS = ((RequestError, 400), (AudioError, 422), (EngineError, 500), (EngineDied, 503))
# The answer to a client where an exception is not one of ours.
INTERNAL = RayscribeError("internal", "internal error; the server's log has the details")
# The ``Retry-After`` of every 429 and 503, in seconds.
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
