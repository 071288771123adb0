"""Classifies the exceptions of fsspec's drivers: transient or not, and which error code.

Limit: of the errors of gcsfs and adlfs only those with an HTTP status count as transient.
"""

import re
from collections.abc import Iterator
from typing import Any, cast

from storage.row_access import PrivateHostError

# HTTP statuses that count as transient, besides all of 5xx: request timeout, too early, too many requests.
_TRANSIENT_STATUSES = frozenset({408, 425, 429})
# AWS error codes of credentials, whatever their HTTP status: S3 responds with 400 to an expired token (Amazon S3 API
# reference, Error responses; IAM and STS, Common errors).
_CREDENTIAL_CODES = frozenset(
    {
        *("AccessDenied", "AccountProblem", "AllAccessDisabled", "AuthFailure", "ExpiredToken"),
        *("ExpiredTokenException", "IDPCommunicationError", "IDPRejectedClaim", "IncompleteSignature"),
        *("InvalidAccessKeyId", "InvalidClientTokenId", "InvalidIdentityToken", "InvalidSecurity", "InvalidToken"),
        *("MissingAuthenticationToken", "MissingSecurityHeader", "NotSignedUp", "OptInRequired", "RequestExpired"),
        *("RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired", "UnrecognizedClientException"),
        "400",  # of a HEAD, whose response has no body with a code: mostly an expired token
    }
)
# Exceptions of botocore, google-auth and azure-identity about credentials.
_CREDENTIAL_EXCEPTION = re.compile(r"Credential|SSOToken|TokenRetrieval|RefreshError|Authentication")


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
    if (
        status in (401, 403)
        or service_code(error) in _CREDENTIAL_CODES
        or isinstance(error, PermissionError)
        or _CREDENTIAL_EXCEPTION.search(type(error).__name__)
    ):
        return "forbidden"
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        return "not_found"
    return None


def root_cause(error: BaseException) -> BaseException:
    """The cause of a FileNotFoundError, which fsspec raises for every HTTP error; of aiohttp's, a PrivateHostError."""
    if isinstance(error, FileNotFoundError) and error.__cause__:
        error = error.__cause__
    os_error = getattr(error, "os_error", None)
    return os_error if isinstance(os_error, PrivateHostError) else error


def http_status(error: BaseException) -> int | None:
    """The HTTP status in a driver's error, or None."""
    for response in _aws_responses(error):
        return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for name in ("status", "status_code", "code"):  # aiohttp, Azure, gcsfs
        if isinstance(status := getattr(error, name, None), int):
            return status
    return None


def service_code(error: BaseException) -> str | None:
    """The code in an AWS error response, or None."""
    for response in _aws_responses(error):
        return cast("str | None", response.get("Error", {}).get("Code"))
    return None


def _aws_responses(error: BaseException) -> Iterator[dict[str, Any]]:
    for each in (error, error.__cause__):  # s3fs raises OSErrors from botocore's errors
        if isinstance(response := getattr(each, "response", None), dict):
            yield response
