"""The fsspec drivers for each URI scheme, with timeouts and retries for runs that last days.

All threads of a process share one instance of a driver, so that connections are reused. A request without a
response times out within seconds. On S3, botocore retries single requests with exponential backoff, jitter and a
retry quota, so that many workers do not overload a throttling service. The retries and timeouts of the ``gs://`` and
``az://`` drivers are left at their defaults.
"""

import functools
import importlib.util
import json
from typing import Any

import fsspec

from speech.errors import UsageError
from storage.http_session import http_session
from storage.local_files import LocalFiles
from storage.uris import LOCAL, S3, WEB

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}

# The driver's attempts for one request. Few, because each attempt on a stalled object costs a read timeout.
_REQUEST_ATTEMPTS = 3
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 15.0  # between two reads of the socket; healthy services pause far less
_CONNECTIONS = 64  # to one service; botocore's default of 10 would block threads that list and read


def missing_driver(protocol: str) -> str | None:
    """The pip package that a protocol needs, if it is not installed; else None."""
    package = PACKAGES.get(protocol)
    return package if package and importlib.util.find_spec(package) is None else None


def filesystem_class(protocol: str) -> type[fsspec.AbstractFileSystem]:
    """The driver's class.

    Raises:
        UsageError: ``unknown_storage`` or ``missing_driver``.
    """
    if package := missing_driver(protocol):
        raise UsageError("missing_driver", f"{protocol}:// needs the package {package}: pip install {package}")
    if protocol in LOCAL:
        return LocalFiles
    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise UsageError("missing_driver", f"{protocol}:// needs a package: {error}") from error
    except ValueError as error:
        raise UsageError(
            "unknown_storage", f"{protocol}:// is an unknown scheme; use s3://, gs://, az://, https:// or a path"
        ) from error


@functools.lru_cache(maxsize=64)
def shared_filesystem(protocol: str, options_json: str, public_only: bool = False) -> fsspec.AbstractFileSystem:
    """The process's one instance. (fsspec's cache keeps one a thread, each with its own connections.)

    Args:
        protocol: a URI's scheme.
        options_json: the driver's arguments, as JSON.
        public_only: connect over HTTP to hosts with a public address only.

    Raises:
        UsageError: ``unknown_storage``, ``missing_driver`` or ``bad_storage_options``.
    """
    options = json.loads(options_json)
    # Other machines write into the folders that are listed, so a cached listing may be stale.
    options.setdefault("use_listings_cache", False)
    try:
        if protocol in WEB:
            _set_web_limits(options)
            options["get_client"] = functools.partial(http_session, public_only)
        if protocol in S3:
            _set_s3_limits(options)
        filesystem = filesystem_class(protocol)(skip_instance_cache=True, **options)
        if protocol in S3:
            # s3fs retries around botocore, and its file reads retry around its requests: a stalled object would
            # cost 5 × 5 × botocore's attempts, a read timeout each. So s3fs tries once; storage.retry does the rest.
            filesystem.retries = 1
        return filesystem
    except Exception as error:
        raise UsageError(
            "bad_storage_options",
            f"{protocol}:// cannot be set up with the options given ({', '.join(json.loads(options_json)) or 'none'}): "
            f"{type(error).__name__}",
        ) from None


def is_s3_folder(filesystem: Any, path: str) -> bool:
    """``isdir`` by one small request. That of s3fs lists all that is directly below, a thousand files a request."""
    bucket, key, _ = filesystem.split_path(path)
    prefix = key.rstrip("/") + "/" if key else ""
    try:
        found = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except FileNotFoundError:  # no such bucket
        return False
    return not key or "Contents" in found


def _set_s3_limits(options: dict[str, Any]) -> None:
    """Sets botocore's retries and timeouts, unless the user's options set them, and reads a file in one request."""
    options.setdefault("max_concurrency", 1)  # else s3fs requests the size first, to read ranges concurrently
    config = {
        "retries": {"mode": "standard", "total_max_attempts": _REQUEST_ATTEMPTS},
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "read_timeout": _READ_TIMEOUT_S,
        "max_pool_connections": _CONNECTIONS,
    }
    options["config_kwargs"] = config | options.get("config_kwargs", {})


def _set_web_limits(options: dict[str, Any]) -> None:
    """Sets aiohttp's timeouts: its default is five minutes in total, even while data arrives."""
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S)
    options["client_kwargs"] = {"timeout": timeout} | options.get("client_kwargs", {})
