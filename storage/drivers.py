"""The drivers behind URIs: fsspec's filesystems, with limits that a run of days can live with.

One instance of a driver serves all threads of a process, so that connections are reused, and a request that is not
answered ends in seconds. On S3 botocore repeats a single request, with exponential backoff, jitter and a quota, so
that a fleet does not storm a service in trouble. On ``gs://`` and ``az://`` the drivers' own retries and timeouts are
left as they are.
"""

import functools
import importlib.util
import json
from typing import Any

import fsspec

from speech.errors import UsageError
from storage.uris import S3, WEB

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}

# Of one request, by the driver. Few, since an object that stalls costs a read timeout each time.
_REQUEST_ATTEMPTS = 3
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 15.0  # without a byte: far longer than any healthy service is silent
_CONNECTIONS = 64  # open at a time to one service; botocore's 10 would hold up the threads that list and read


def missing_driver(protocol: str) -> str | None:
    """The pip package that a protocol needs and this environment lacks."""
    package = PACKAGES.get(protocol)
    return package if package and importlib.util.find_spec(package) is None else None


def filesystem_class(protocol: str) -> type[fsspec.AbstractFileSystem]:
    """The driver's class.

    Raises:
        UsageError: ``unknown_storage`` or ``missing_driver``.
    """
    if package := missing_driver(protocol):
        raise UsageError("missing_driver", f"{protocol}:// needs the package {package}: pip install {package}")
    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise UsageError("missing_driver", f"{protocol}:// needs a package: {error}") from error
    except ValueError as error:
        raise UsageError(
            "unknown_storage", f"{protocol}:// is no storage known here; use s3://, gs://, az://, https:// or a path"
        ) from error


@functools.lru_cache(maxsize=64)
def shared_filesystem(protocol: str, options_json: str) -> fsspec.AbstractFileSystem:
    """One instance a process: fsspec's own cache makes one a thread, each with connections of its own.

    Args:
        protocol: a URI's scheme.
        options_json: the driver's arguments, as JSON.

    Raises:
        UsageError: ``unknown_storage``, ``missing_driver`` or ``bad_storage_options``.
    """
    options = json.loads(options_json)
    # Other machines write into the folders that we list: what was listed before is not to be believed.
    options.setdefault("use_listings_cache", False)
    try:
        if protocol in WEB:
            _set_web_limits(options)
        if protocol in S3:
            _set_s3_limits(options)
        filesystem = filesystem_class(protocol)(skip_instance_cache=True, **options)
        if protocol in S3:
            # s3fs repeats around botocore, and its reads around its requests: a stalled object would cost
            # 5 × 5 × botocore's attempts of a read timeout each. Once is left to it, the rest is ours.
            filesystem.retries = 1
        return filesystem
    except Exception as error:
        raise UsageError(
            "bad_storage_options",
            f"{protocol}:// cannot be set up with the options given ({', '.join(json.loads(options_json)) or 'none'}): "
            f"{type(error).__name__}",
        ) from None


def _set_s3_limits(options: dict[str, Any]) -> None:
    """botocore's own retries and timeouts, where the user's options have none; one request for one file."""
    options.setdefault("max_concurrency", 1)  # else s3fs asks for a file's size first, to read it in parts
    config = {
        "retries": {"mode": "standard", "total_max_attempts": _REQUEST_ATTEMPTS},
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "read_timeout": _READ_TIMEOUT_S,
        "max_pool_connections": _CONNECTIONS,
    }
    options["config_kwargs"] = config | options.get("config_kwargs", {})


def _set_web_limits(options: dict[str, Any]) -> None:
    """aiohttp's timeouts: its own limit is five minutes for a file, however well that comes in."""
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S)
    options["client_kwargs"] = {"timeout": timeout} | options.get("client_kwargs", {})
