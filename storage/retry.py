"""What a driver's error means: whether it may pass, and which code it has; and the patience to wait until it has.

What goes wrong for a moment (throttling, a reset, a stall) is tried again. A driver repeats the single request, where
it knows how (``storage.drivers``). What no driver repeats (a body that breaks off or stalls, anything over plain HTTP)
and what outlasts the driver's few attempts is repeated here as a whole, with backoff and jitter too. What storage has
decided, ``not_found`` or ``forbidden``, is never asked twice.

Limit: of the errors of gcsfs and adlfs only those with an HTTP status are repeated here.
"""

from collections.abc import Callable
from typing import Any, cast

import tenacity

# How long one operation is tried again, from its first try on. Throttling and failovers are mostly over in
# less; longer, and rows of a manifest that names a dead server would cost the job more than they are worth.
RETRY_FOR_S = 30.0
# Up to half a second, one, two, … and never more than 15, at random: full jitter, as AWS advises.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
# HTTP statuses that are over soon: timeouts, "too early", throttling; and all of the server's own faults.
_BUSY = frozenset({408, 425, 429})


def retry(retry_for_s: float, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls, and calls again while that fails for a reason that may pass and patience is left."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        stop=tenacity.stop_after_delay(retry_for_s),
        reraise=True,
    )
    return retrying(call, *args, **kwargs)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed in a while: the network's faults, and a server's that is busy or broken."""
    from aiohttp import ClientError
    from botocore.exceptions import ConnectionError as EndpointError
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError  # of throttling that is answered in plain text

    error = root_cause(error)
    if isinstance(error, ValueError):  # no URL, no certificate
        return False
    if isinstance(error, TimeoutError):  # S3's own RequestTimeout has status 400
        return True
    status = http_status(error)
    if status is not None:
        return status in _BUSY or status >= 500
    return isinstance(
        error, (ConnectionError, EOFError, ClientError, EndpointError, HTTPClientError, ResponseParserError)
    )


def root_cause(error: BaseException) -> BaseException:
    """fsspec says "not found" of whatever went wrong over HTTP, and keeps the true reason as its cause."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def http_status(error: BaseException) -> int | None:
    """The HTTP status that a driver's error tells of."""
    for each in (error, error.__cause__):  # s3fs makes an OSError from botocore's
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for name in ("status", "status_code", "code"):  # aiohttp's, Azure's, gcsfs'
        if isinstance(status := getattr(error, name, None), int):
            return status
    return None


def error_code(error: BaseException) -> str | None:
    """``not_found`` or ``forbidden``, if that is what a driver's error says."""
    status = http_status(error)
    if status in (401, 403) or isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return "forbidden"
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        return "not_found"
    return None
