"""One filesystem for a URI: local paths, ``s3://``, ``gs://``, ``az://``, ``https://``, by fsspec.

Everything that Rayscribe reads or writes outside the process goes through ``Storage``, so that
credentials, error codes and retries have one home. A Storage is a few options and nothing open: it
travels in a pickle to every worker, and there the filesystems of one process are shared by all its
threads, so that connections are reused.

What goes wrong for a moment (throttling, a reset, a stall) is tried again, in two layers. A driver
repeats the single request, where it knows how: on S3 botocore does, with exponential backoff, jitter
and a quota, so that a fleet does not storm a service in trouble. What no driver repeats (a body that
breaks off or stalls, anything over plain HTTP) and what outlasts the driver's few attempts is
repeated here as a whole, with backoff and jitter too, until ``patience_s`` is spent. A recording is
fetched range by range, and it is the range that is repeated. What storage has decided, ``not_found``
or ``forbidden``, is never asked twice, and nothing is on local disks.

What storage says when it fails reaches users as an error with a code (``not_found``, ``forbidden``,
``unreadable``, ``not_writable``) that names the URI. Neither credentials nor the query of a URL
(a presigned link is a credential) ever stand in a message, nor in the error chained to it.

Limits: a listing is held in memory whole (about 1 kB a file on S3), so for millions of files a
manifest is better than a folder. An object that drips, a byte now and then, passes for alive; whoever
reads it sets the limit. On ``gs://`` and ``az://`` the drivers' own retries and timeouts are left as
they are, and of their own families of errors only those with an HTTP status are repeated here.
"""

import contextlib
import copy
import functools
import importlib.util
import io
import json
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import fsspec
import tenacity

from speech.errors import AudioError, RayscribeError, UsageError
from speech.uris import public_uri

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL = frozenset({"file", "local"})
_WEB = frozenset({"http", "https"})
_S3 = frozenset({"s3", "s3a"})
# Options that stand for all protocols at once are for object stores. An HTTP server is anybody's, and
# is not told the user's keys.
_WITHOUT_SHARED_OPTIONS = _LOCAL | _WEB | {"memory"}
_DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
_SECRET_OPTION = re.compile(r"key|secret|token|password|credential|connection_string|sas", re.IGNORECASE)
_URL_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
_GLOB = re.compile(r"[*?\[]")

_BLOCK_BYTES = 8 << 20  # one request; large enough that its latency is small beside its transfer
_SPOOL_BYTES = 16 << 20  # 17 minutes of 8 kHz stereo mu-law; a larger recording waits on disk
_PROBE = ".rayscribe-write-test"

# How long one operation is tried again, from its first try on. Throttling and failovers are mostly over in
# less; longer, and rows of a manifest that names a dead server would cost the job more than they are worth.
PATIENCE_S = 30.0
# Before the job starts somebody waits for the answer, and a wrong endpoint is likelier than a brief fault.
_CHECK_PATIENCE_S = 1.0
# Up to half a second, one, two, … and never more than 15, at random: full jitter, as AWS advises.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
# Of one request, by the driver. Few, since an object that stalls costs a read timeout each time.
_REQUEST_ATTEMPTS = 3
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 15.0  # without a byte: far longer than any healthy service is silent
_CONNECTIONS = 64  # open at a time to one service; botocore's 10 would hold up the threads that list and read
# HTTP statuses that are over soon: timeouts, "too early", throttling; and all of the server's own faults.
_BUSY = frozenset({408, 425, 429})


class Storage:
    """Opens, lists and writes what URIs name. Picklable; safe to share between threads.

    Args:
        options: for object stores, under fsspec's names (``key``, ``secret``, ``token``,
            ``endpoint_url``, ``anon``, …), or keyed by protocol: ``{"s3": {…}, "https": {…}}``.
            Without options the drivers look where they always do (environment, profile, metadata).
        patience_s: how long one operation is tried again when what went wrong may pass.
    """

    def __init__(self, options: Mapping[str, Any] | None = None, patience_s: float = PATIENCE_S) -> None:
        options = dict(options or {})
        try:
            json.dumps(options)
        except TypeError as error:
            raise UsageError("bad_storage_options", "storage options must be plain JSON values") from error
        keyed = options and all(
            name in fsspec.available_protocols() and isinstance(value, dict) for name, value in options.items()
        )
        self._shared: dict[str, Any] = {} if keyed else options
        self._by_protocol: dict[str, dict[str, Any]] = options if keyed else {}
        self._patience_s = patience_s

    def __repr__(self) -> str:
        return f"Storage({', '.join([*self._shared, *self._by_protocol])})"

    def filesystem(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """The filesystem that holds ``uri``, and the path in it.

        Raises:
            UsageError: ``unknown_storage``, ``missing_driver`` or ``bad_storage_options``.
        """
        protocol = _protocol(uri)
        if protocol in _LOCAL:
            path = unquote(_SCHEME.sub("", uri, count=1)) if _SCHEME.match(uri) else uri
            return _filesystem("file", "{}"), os.path.abspath(path)
        driver = _driver(protocol)
        aliases = (driver.protocol,) if isinstance(driver.protocol, str) else driver.protocol
        options = {} if protocol in _WITHOUT_SHARED_OPTIONS else self._shared
        for alias in aliases:
            options = options | self._by_protocol.get(alias, {})
        options = options | driver._get_kwargs_from_urls(uri)
        return _filesystem(protocol, json.dumps(options, sort_keys=True)), driver._strip_protocol(uri)

    def open(self, uri: str) -> BinaryIO:
        """Opens a file to be read, seekable where its storage is.

        Raises:
            UsageError: ``not_found``, ``forbidden`` or ``unreadable``.
        """
        with self.told_as(UsageError, uri):
            filesystem, path = self.filesystem(uri)
            if is_local(uri):
                return open(path, "rb")
            return io.BufferedReader(self._open_remote(filesystem, path), 1 << 20)  # fsspec's own readline is slow

    def open_audio(self, uri: str) -> str | BinaryIO:
        """What ``speech.decoding.open_audio`` wants: the path of a local file, else a seekable copy.

        Decoders seek back and forth, which over a network would cost a request each; the object is
        fetched once, block by block, and stays in memory if it is small. The caller closes it.

        Raises:
            AudioError: ``not_found``, ``forbidden`` or ``unreadable``; a local file's come from the decoder.
        """
        with self.told_as(AudioError, uri), contextlib.ExitStack() as on_failure:
            filesystem, path = self.filesystem(uri)
            if is_local(uri):
                return path
            spool = on_failure.enter_context(tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES))
            with self._open_remote(filesystem, path, cache_type="none") as source:
                shutil.copyfileobj(source, spool, _BLOCK_BYTES)
            spool.seek(0)
            on_failure.pop_all()
            return cast(BinaryIO, spool)

    def _open_remote(self, filesystem: fsspec.AbstractFileSystem, path: str, **options: Any) -> "_RemoteFile":
        return _RemoteFile(functools.partial(filesystem.open, path, "rb", **options), self._patience_s)

    def exists(self, uri: str) -> bool:
        """Whether there is a file or folder."""
        with self.told_as(UsageError, uri):
            return self._exists(uri)

    def _exists(self, uri: str) -> bool:
        filesystem, path = self.filesystem(uri)
        return bool(self._tried(uri, filesystem.exists, path))

    def is_folder(self, uri: str) -> bool:
        """Whether ``uri`` is a folder. Web pages are not, even those that list files."""
        with self.told_as(UsageError, uri):
            filesystem, path = self.filesystem(uri)
            return _protocol(uri) not in _WEB and bool(self._tried(uri, filesystem.isdir, path))

    def list(self, uri: str) -> list[str]:
        """The URIs of all files in a folder, whatever their depth, or of those that a glob matches; sorted.

        Of a folder that does not exist there are none.
        """
        with self.told_as(UsageError, uri):
            filesystem, path = self.filesystem(uri)
            if is_glob(uri) and not self.is_folder(uri):
                matches = self._tried(uri, filesystem.glob, path, detail=True)
                found = [name for name, info in matches.items() if info["type"] == "file"]
            else:
                found = self._tried(uri, filesystem.find, path)
            return sorted(_uri_of(name, uri) for name in found)

    def sizes(self, folder: str) -> dict[str, int]:
        """The URIs of all files in a folder, whatever their depth, in order, and how many bytes each has."""
        with self.told_as(UsageError, folder):
            filesystem, path = self.filesystem(folder)
            found = self._tried(folder, filesystem.find, path, detail=True)
            return {_uri_of(name, folder): info["size"] for name, info in sorted(found.items())}

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Writes a small file whole or not at all, over one that may be there.

        Raises:
            UsageError: ``not_found``, ``forbidden`` or ``not_writable``.
        """
        with self.told_as(UsageError, uri, "not_writable"):
            filesystem, path = self.filesystem(uri)
            if not is_local(uri):
                self._tried(uri, filesystem.pipe_file, path, data)  # one PUT: object stores show it whole
                return
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.ExitStack() as on_failure:
                handle, part = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".", suffix=".part")
                on_failure.callback(os.unlink, part)
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file)  # before it has its name: that must not stand over nothing after a power cut
                os.chmod(part, 0o666 & ~_UMASK)  # mkstemp's files are the owner's alone
                os.replace(part, path)
                on_failure.pop_all()

    def create_bytes(self, uri: str, data: bytes) -> bool:
        """Writes a small file if there is none; returns whether it did. Of two at once, one does.

        Object stores that do not know ``If-None-Match`` (AWS, GCS and recent MinIO do) let both.
        ``data`` should be the caller's own, a name or a number at random: a write whose answer was
        lost is known by what it has left.
        """
        with self.told_as(UsageError, uri, "not_writable"):
            filesystem, path = self.filesystem(uri)
            if is_local(uri):
                return self._link_new(path, data)
            if self._exists(uri):
                return False
            try:
                self._tried(uri, filesystem.pipe_file, path, data, mode="create")
            except Exception:
                if self._exists(uri):
                    return bool(self._tried(uri, filesystem.cat_file, path) == data)
                raise
            return True

    def _link_new(self, path: str, data: bytes) -> bool:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), prefix=".", suffix=".part") as part:
            part.write(data)
            part.flush()
            try:
                os.link(part.name, path)
            except FileExistsError:
                return False
            return True

    def read_bytes(self, uri: str) -> bytes | None:
        """A small file whole, or None if there is none."""
        try:
            with self.told_as(UsageError, uri):
                filesystem, path = self.filesystem(uri)
                return cast(bytes, self._tried(uri, filesystem.cat_file, path))
        except UsageError as error:
            if error.code == "not_found":
                return None
            raise

    def remove(self, uri: str) -> None:
        """Takes a file away, if it is there."""
        with self.told_as(UsageError, uri, "not_writable"):
            filesystem, path = self.filesystem(uri)
            with contextlib.suppress(FileNotFoundError):
                self._tried(uri, filesystem.rm_file, path)

    def check_readable(self, uri: str) -> None:
        """Returns if a file, a folder or what a glob matches can be read now.

        Raises:
            UsageError: ``not_found``, ``forbidden`` or ``unreadable``.
        """
        hasty = self._hasty()
        try:
            if is_glob(uri) and not hasty.exists(uri):
                if not hasty.list(uri):
                    raise UsageError("not_found", f"no file matches {uri}")
            elif not hasty.is_folder(uri):
                with hasty.open(uri) as file, hasty.told_as(UsageError, uri):
                    file.read(1)
        except UsageError as error:
            raise self._without_bucket(uri, error) or error from None

    def check_writable(self, uri: str) -> None:
        """Returns if files can be written into the folder ``uri``, which is made where folders need making.

        Writes an object of its own and takes it away again: permissions cannot be known otherwise.

        Raises:
            UsageError: ``not_found`` (no such bucket), ``forbidden`` or ``not_writable``.
        """
        probe = join(uri, _PROBE)
        if _protocol(uri) in _WEB:
            raise UsageError("not_writable", f"{public_uri(uri)} cannot be written: HTTP servers are only read from")
        try:
            self._hasty().write_bytes(probe, b"")
        except UsageError as error:
            shown = UsageError(error.code, error.message.replace(f"/{_PROBE}", ""))
            raise self._without_bucket(uri, error) or shown from None
        with contextlib.suppress(UsageError):  # where deleting is forbidden, an empty object stays
            self._hasty().remove(probe)

    def _hasty(self) -> "Storage":
        """The same storage, for somebody who waits."""
        hasty = copy.copy(self)
        hasty._patience_s = min(self._patience_s, _CHECK_PATIENCE_S)
        return hasty

    def _tried(self, uri: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What ``call`` returns; tried again for as long as storage's patience lasts, unless it is a disk's."""
        return call(*args, **kwargs) if is_local(uri) else _patiently(self._patience_s, call, *args, **kwargs)

    def _without_bucket(self, uri: str, error: UsageError) -> UsageError | None:
        """The error to show instead of ``not_found`` when it is the bucket that does not exist."""
        if error.code != "not_found" or _protocol(uri) not in _DRIVERS:
            return None
        filesystem, path = self.filesystem(uri)
        bucket = path.split("/")[0]
        try:
            filesystem.ls(bucket)
        except FileNotFoundError:
            return UsageError(
                "not_found", f"there is no bucket {_protocol(uri)}://{bucket}: create it, or mend the name"
            )
        except Exception:  # it cannot be asked about: the first error says more
            return None
        return None

    @contextlib.contextmanager
    def told_as(
        self, kind: type[UsageError] | type[AudioError], uri: str, otherwise: str = "unreadable"
    ) -> Iterator[None]:
        """Maps whatever a driver raises within to an error of ours that names ``uri``.

        Drivers have exceptions of many families (botocore's and aiohttp's are no OSError), so all are taken.
        """
        try:
            yield
        except RayscribeError as error:
            if kind is AudioError and isinstance(error, UsageError):  # a row's own storage is that row's matter
                raise AudioError("unreadable", error.message) from error
            raise
        except Exception as error:
            true = _true_error(error)
            code = _code(true) or otherwise
            shown = public_uri(uri)
            sentence = {
                "not_found": f"{shown} does not exist",
                "forbidden": f"{shown} is forbidden: check the credentials (environment or --storage-options) "
                "and what they may do",
                "not_writable": f"{shown} cannot be written: {self._reason(true)}",
                "unreadable": f"{shown} cannot be read: {self._reason(true)}",
            }[code]
            # A driver's own error may quote the whole URL or a key; a local file's cannot.
            raise kind(code, sentence) from (error if is_local(uri) else None)

    def _reason(self, error: BaseException) -> str:
        """What a driver says, in one line and without secrets."""
        strerror = error.strerror if isinstance(error, OSError) else None
        text = " ".join((strerror or f"{type(error).__name__}: {error}").split())
        for options in (self._shared, *self._by_protocol.values()):
            for name, value in options.items():
                if isinstance(value, str) and value and _SECRET_OPTION.search(name):
                    text = text.replace(value, "…")
        return _URL_QUERY.sub(r"\1", text)


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a path on this machine (``file://`` too)."""
    return _protocol(uri) in _LOCAL


def is_glob(uri: str) -> bool:
    """Whether ``uri`` holds ``*``, ``?`` or ``[``. In a web address these are no patterns."""
    return _protocol(uri) not in _WEB and bool(_GLOB.search(uri))


def join(uri: str, *parts: str) -> str:
    """A URI below another: ``join("s3://b/out", "run.json")``."""
    return "/".join([uri.rstrip("/"), *parts])


def resolve(audio: str, folder: str) -> str:
    """Where a manifest's ``audio`` is: a relative path is relative to ``folder``, all else stands as it is.

    Local paths come out absolute, for a worker has another working directory.
    """
    if _SCHEME.match(audio) or os.path.isabs(audio):
        return audio
    scheme = _SCHEME.match(folder)
    if not scheme or is_local(folder):
        base = unquote(folder[scheme.end() :]) if scheme else os.path.abspath(folder)
        return posixpath.normpath(posixpath.join(base, audio))
    return scheme[0] + posixpath.normpath(posixpath.join(folder[scheme.end() :], audio))


def parent(uri: str) -> str:
    """The folder that a file is in, without a URL's query."""
    uri = uri.split("?")[0] if _protocol(uri) in _WEB else uri
    return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else ".")


def missing_driver(protocol: str) -> str | None:
    """The pip package that a protocol needs and this environment lacks."""
    package = _DRIVERS.get(protocol)
    return package if package and importlib.util.find_spec(package) is None else None


def _protocol(uri: str) -> str:
    scheme = _SCHEME.match(uri)
    return scheme[1].lower() if scheme else "file"


def _uri_of(name: str, like: str) -> str:
    """The URI of what a filesystem calls ``name``, in the storage of another URI."""
    return name if is_local(like) else f"{_protocol(like)}://{name}"


def _driver(protocol: str) -> type[fsspec.AbstractFileSystem]:
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
def _filesystem(protocol: str, options_json: str) -> fsspec.AbstractFileSystem:
    """One instance a process: fsspec's own cache makes one a thread, each with connections of its own."""
    options = json.loads(options_json)
    # Other machines write into the folders that we list: what was listed before is not to be believed.
    options.setdefault("use_listings_cache", False)
    try:
        if protocol in _WEB:
            _set_web_limits(options)
        if protocol in _S3:
            _set_s3_limits(options)
        filesystem = _driver(protocol)(skip_instance_cache=True, **options)
        if protocol in _S3:
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


def _patiently(patience_s: float, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls, and calls again while that fails for a reason that may pass and patience is left."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        stop=tenacity.stop_after_delay(patience_s),
        reraise=True,
    )
    return retrying(call, *args, **kwargs)


def _may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed in a while: the network's faults, and a server's that is busy or broken."""
    from aiohttp import ClientError
    from botocore.exceptions import ConnectionError as EndpointError
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError  # of throttling that is answered in plain text

    error = _true_error(error)
    if isinstance(error, ValueError):  # no URL, no certificate
        return False
    if isinstance(error, TimeoutError):  # S3's own RequestTimeout has status 400
        return True
    status = _status(error)
    if status is not None:
        return status in _BUSY or status >= 500
    return isinstance(
        error, (ConnectionError, EOFError, ClientError, EndpointError, HTTPClientError, ResponseParserError)
    )


def _true_error(error: BaseException) -> BaseException:
    """fsspec says "not found" of whatever went wrong over HTTP, and keeps the true reason as its cause."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _status(error: BaseException) -> int | None:
    """The HTTP status that a driver's error tells of."""
    for each in (error, error.__cause__):  # s3fs makes an OSError from botocore's
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for name in ("status", "status_code", "code"):  # aiohttp's, Azure's, gcsfs'
        if isinstance(status := getattr(error, name, None), int):
            return status
    return None


def _code(error: BaseException) -> str | None:
    """``not_found`` or ``forbidden``, if that is what a driver's error says."""
    status = _status(error)
    if status in (401, 403) or isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return "forbidden"
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        return "not_found"
    return None


class _RemoteFile(io.RawIOBase):
    """A remote file whose reads are tried again, each from where the last one ended.

    A web server that knows no ranges sends a stream, and one that has broken stays broken: it is begun
    anew, and what was read before is stepped over. Some such servers say so beforehand, some do not.
    """

    def __init__(self, open_file: Callable[..., Any], patience_s: float) -> None:
        self._open_file = open_file
        self._patience_s = patience_s
        self._file = _patiently(patience_s, open_file, block_size=_BLOCK_BYTES)
        self._streams = not isinstance(getattr(self._file, "size", None), int)
        self._broken = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return not self._streams

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return cast(int, self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._file.tell())

    def read(self, size: int = -1) -> bytes:
        return cast(bytes, _patiently(self._patience_s, self._read, size))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        if self._broken:
            self._begin_anew()
        try:
            return cast(bytes, self._file.read(size))
        except ValueError:  # so fsspec tells of a server that has ignored the range
            if self._streams:
                raise
            self._streams = self._broken = True
            return self._read(size)
        except Exception:
            self._broken = self._streams
            raise

    def _begin_anew(self) -> None:
        file, at = self._open_file(block_size=0), self._file.tell()  # 0: as a stream
        while file.tell() < at:
            if not file.read(min(_BLOCK_BYTES, at - file.tell())):
                raise EOFError("it is shorter than it was")
        self._file.close()
        self._file, self._broken = file, False

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()  # once: it is the process's, and two threads that ask at a time could leave it at 0
