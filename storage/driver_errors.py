"""Classifies the exceptions of fsspec's drivers: transient or not, and which error code.

Limit: of the errors of gcsfs and adlfs only those with an HTTP status count as transient.
"""

from typing import Any, cast

# HTTP statuses that count as transient, besides all of 5xx: request timeout, too early, too many requests.
_TRANSIENT_STATUSES = frozenset({408, 425, 429})
# S3's error codes for credentials that are no longer accepted, with status 400: of those of AWS's temporary tokens.
_CREDENTIAL_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"})


def is_transient(error: BaseException) -> bool:
    """Whether a retry may succeed: network errors, throttling, and server errors."""
    from aiohttp import ClientError
    from botocore.exceptions import ConnectionError as EndpointError
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError  # of a throttling response in plain text

    error = root_cause(error)
    if isinstance(error, ValueError):  # an invalid URL or certificate
        return False
    if isinstance(error, TimeoutError):  # S3's RequestTimeout has status 400
        return True
    status = http_status(error)
    if status is not None:
        return status in _TRANSIENT_STATUSES or status >= 500
    return isinstance(
        error, (ConnectionError, EOFError, ClientError, EndpointError, HTTPClientError, ResponseParserError)
    )


def error_code(error: BaseException) -> str | None:
    """``not_found`` or ``forbidden``, if the driver's error means that; else None."""
    status = http_status(error)
    if status in (401, 403) or isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return "forbidden"
    if _response(error).get("Error", {}).get("Code") in _CREDENTIAL_CODES:
        return "forbidden"
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        return "not_found"
    return None


def root_cause(error: BaseException) -> BaseException:
    """The cause of a FileNotFoundError, if it has one: fsspec raises that for every HTTP error."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def http_status(error: BaseException) -> int | None:
    """The HTTP status in a driver's error, or None."""
    if response := _response(error):
        return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for name in ("status", "status_code", "code"):  # aiohttp, Azure, gcsfs
        if isinstance(status := getattr(error, name, None), int):
            return status
    return None


def _response(error: BaseException) -> dict[str, Any]:
    """botocore's parsed response, or an empty dict."""
    for each in (error, error.__cause__):  # s3fs raises OSErrors from botocore's errors
        if isinstance(response := getattr(each, "response", None), dict):
            return response
    return {}
