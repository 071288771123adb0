"""Storage: opens, lists and writes local paths, ``s3://``, ``gs://``, ``az://`` and ``https://`` by fsspec.

All input and output of Rayscribe goes through ``Storage``, so that credentials, error codes and retries
are handled in one place. A Storage holds options and no open connections: it is pickled to every worker,
where all threads of a process share its filesystems (``storage.drivers``).

Transient errors are retried for ``retry_for_s`` (``storage.retry``), except on local disks. A recording is
fetched range by range, and only the failed range is retried (``storage.remote``).

Driver errors are raised as errors with a code (``not_found``, ``forbidden``, ``unreadable``,
``not_writable``) that name the URI. Messages and chained exceptions contain neither credentials nor the
query of a URL (a presigned link is a credential).

Limits: a listing is held in memory whole (about 1 kB a file on S3), so for millions of files a
manifest is better than a folder. An object that arrives a few bytes at a time never times out here; the
caller sets such a limit.
"""

import contextlib
import copy
import errno
import functools
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import fsspec

from speech.errors import AudioError, RayscribeError, StorageError, UsageError, audio_error_kind
from speech.redaction import redact_uri
from storage.driver_errors import error_code, is_transient, root_cause, service_code
from storage.drivers import PACKAGES, filesystem_class, is_s3_folder, shared_filesystem
from storage.remote import BLOCK_BYTES, RemoteFile
from storage.retry import RETRY_FOR_S, retry
from storage.row_access import PrivateHostError, check_scheme
from storage.uris import LOCAL, S3, SCHEME, WEB, is_glob, is_local, join, protocol_of, uri_like

_SECRET_OPTION = re.compile(r"key|secret|token|password|credential|connection_string|sas", re.IGNORECASE)
# How file systems refuse links that have none: exFAT, and most object stores that are mounted.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_URL_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")

_SPOOL_BYTES = 16 << 20  # 17 minutes of 8 kHz stereo mu-law; larger recordings are spooled to disk
_PROBE = ".rayscribe-write-test"
# Before the job starts a user waits for the result, and a wrong endpoint is likelier than a transient error.
_CHECK_RETRY_FOR_S = 1.0


class Storage:
    """Opens, lists and writes files by URI. Picklable; safe to share between threads.

    Args:
        options: for object stores, under fsspec's names (``key``, ``secret``, ``token``,
            ``endpoint_url``, ``anon``, …), for s3, gs and az; or keyed by protocol, or by protocol and host:
            ``{"s3": {…}, "https://calls.example.com": {…}}``. Each protocol or host receives its own only, as a
            server that a row names may be anybody's.
            Without options the drivers use their default credentials (environment, profile, metadata service).
        retry_for_s: how long one operation is retried after transient errors.
        allow_schemes: what ``open_audio`` opens besides ``storage.row_access.ROW_SCHEMES``.
        allow_private_hosts: whether ``open_audio`` connects to private addresses over HTTP.
    """

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        retry_for_s: float = RETRY_FOR_S,
        allow_schemes: Collection[str] = (),
        allow_private_hosts: bool = False,
    ) -> None:
        options = dict(options or {})
        try:
            json.dumps(options)
        except TypeError as error:
            raise UsageError("bad_storage_options", "storage options must be plain JSON values") from error
        keyed = options and all(
            name.partition("://")[0] in fsspec.available_protocols() and isinstance(value, dict)
            for name, value in options.items()
        )
        self._shared: dict[str, Any] = {} if keyed else options
        self._by_protocol: dict[str, dict[str, Any]] = options if keyed else {}
        self._retry_for_s = retry_for_s
        self._allow_schemes = frozenset(allow_schemes)
        self._public_only = not allow_private_hosts

    def __repr__(self) -> str:
        return f"Storage({', '.join([*self._shared, *self._by_protocol])})"

    def filesystem(self, uri: str, public_only: bool = False) -> tuple[fsspec.AbstractFileSystem, str]:
        """The filesystem that holds ``uri``, and the path in it.

        Args:
            uri: of a file or folder.
            public_only: connect over HTTP to hosts with a public address only.

        Raises:
            UsageError: ``unknown_storage``, ``missing_driver`` or ``bad_storage_options``.
        """
        protocol = protocol_of(uri)
        if protocol in LOCAL:
            path = unquote(SCHEME.sub("", uri, count=1)) if SCHEME.match(uri) else uri
            return shared_filesystem("file", "{}"), os.path.abspath(path)
        driver = filesystem_class(protocol)
        aliases = (driver.protocol,) if isinstance(driver.protocol, str) else driver.protocol
        options = self._shared if protocol in PACKAGES else {}
        for key in (*aliases, f"{protocol}://{urlsplit(uri).netloc.lower()}"):
            options = options | self._by_protocol.get(key, {})
        of_uri = driver._get_kwargs_from_urls(uri)
        account = of_uri.get("account_name")
        if account and options.get("account_name", account) != account:
            options = {}  # the credentials are those of another Azure account
        options_json = json.dumps(options | of_uri, sort_keys=True)
        public_only = public_only and protocol in WEB  # not a part of the key where it makes no difference
        return shared_filesystem(protocol, options_json, public_only), driver._strip_protocol(uri)

    def open(self, uri: str) -> BinaryIO:
        """Opens a file for reading, seekable where its storage is.

        Raises:
            UsageError: ``not_found``, ``forbidden`` or ``unreadable``.
        """
        with self.map_errors(UsageError, uri):
            filesystem, path = self.filesystem(uri)
            if is_local(uri):
                return open(path, "rb")
            return io.BufferedReader(self._open_remote(filesystem, path), 1 << 20)  # fsspec's readline is slow

    def open_audio(self, uri: str) -> str | BinaryIO:
        """Opens audio for ``speech.audio.decoding.open_audio``: a local file's path, else a seekable copy.

        Decoders seek back and forth, and each seek on remote storage would cost a request. So the object is
        fetched once, block by block, into memory or, beyond 16 MiB, to disk. The caller closes it.

        Raises:
            AudioError: ``not_found``, ``forbidden`` (also what a row may not name) or ``unreadable``. The decoder
                raises those of a local file.
        """
        check_scheme(uri, self._allow_schemes)
        with self.map_errors(AudioError, uri), contextlib.ExitStack() as on_failure:
            filesystem, path = self.filesystem(uri, self._public_only)
            if is_local(uri):
                return path
            spool = on_failure.enter_context(tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES))
            with self._open_remote(filesystem, path, cache_type="none") as source:
                shutil.copyfileobj(source, spool, BLOCK_BYTES)
            spool.seek(0)
            on_failure.pop_all()
            return cast(BinaryIO, spool)

    def _open_remote(self, filesystem: fsspec.AbstractFileSystem, path: str, **options: Any) -> "RemoteFile":
        return RemoteFile(functools.partial(filesystem.open, path, "rb", **options), self._retry_for_s)

    def exists(self, uri: str) -> bool:
        """Whether ``uri`` is a file or folder."""
        with self.map_errors(UsageError, uri):
            return self._exists(uri)

    def _exists(self, uri: str) -> bool:
        filesystem, path = self.filesystem(uri)
        return bool(self._retried(uri, filesystem.exists, path))

    def is_folder(self, uri: str) -> bool:
        """Whether ``uri`` is a folder. An HTTP URL never is, even if the page lists files."""
        with self.map_errors(UsageError, uri):
            filesystem, path = self.filesystem(uri)
            if protocol_of(uri) in S3:
                return bool(self._retried(uri, is_s3_folder, filesystem, path))
            return protocol_of(uri) not in WEB and bool(self._retried(uri, filesystem.isdir, path))

    def list(self, uri: str) -> list[str]:
        """The URIs of all files below a folder, recursively, or of those that a glob matches; sorted.

        Empty if the folder does not exist.
        """
        return [*self.sizes(uri)]

    def sizes(self, uri: str) -> dict[str, int]:
        """The sizes in bytes of the files that ``list`` finds, by URI and in order."""
        with self.map_errors(UsageError, uri):
            filesystem, path = self.filesystem(uri)
            listing = filesystem.glob if is_glob(uri) and not self.is_folder(uri) else filesystem.find
            found = self._retried(uri, listing, path, detail=True)
            files = {name: info for name, info in sorted(found.items()) if info["type"] == "file"}
            return {uri_like(name, uri): info.get("size") or 0 for name, info in files.items()}

    def size(self, uri: str) -> int:
        """The size of a file, in bytes.

        Raises:
            UsageError: as of ``open``.
        """
        with self.open(uri) as file, self.map_errors(UsageError, uri):
            return file.seek(0, os.SEEK_END)

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Writes a small file atomically, replacing any that exists.

        Raises:
            UsageError: ``not_found``, ``forbidden`` or ``not_writable``.
        """
        with self.map_errors(UsageError, uri, "not_writable"):
            filesystem, path = self.filesystem(uri)
            if not is_local(uri):
                self._retried(uri, filesystem.pipe_file, path, data)  # one PUT, which is atomic on object stores
                return
            with _written_beside(path, data) as part:
                os.replace(part, path)

    def create_bytes(self, uri: str, data: bytes) -> bool:
        """Creates a small file if none exists; returns whether it did. Of concurrent callers, one succeeds.

        On object stores without ``If-None-Match`` (AWS, GCS and recent MinIO have it) both may succeed.
        ``data`` should be unique to the caller (contain a random value): if the response to the write is
        lost, the content that was written shows which succeeded.
        """
        with self.map_errors(UsageError, uri, "not_writable"):
            filesystem, path = self.filesystem(uri)
            if is_local(uri):
                return _link_new(path, data)
            if self._exists(uri):
                return False
            try:
                self._retried(uri, filesystem.pipe_file, path, data, mode="create")
            except Exception:
                if self._exists(uri):
                    return bool(self._retried(uri, filesystem.cat_file, path) == data)
                raise
            return True

    def read_bytes(self, uri: str) -> bytes | None:
        """The content of a small file, or None if it does not exist."""
        try:
            with self.map_errors(UsageError, uri):
                filesystem, path = self.filesystem(uri)
                return cast(bytes, self._retried(uri, filesystem.cat_file, path))
        except UsageError as error:
            if error.code == "not_found":
                return None
            raise

    def read_json(self, uri: str) -> dict[str, Any] | None:
        """The JSON object in a small file, or None if there is no file.

        Raises:
            UsageError: ``damaged``; or as of ``read_bytes``.
        """
        data = self.read_bytes(uri)
        try:
            content = None if data is None else json.loads(data)
        except ValueError as error:
            raise UsageError("damaged", f"{redact_uri(uri)} is damaged: {error}") from error
        return cast("dict[str, Any] | None", content)

    def remove(self, uri: str) -> None:
        """Deletes a file, if it exists."""
        with self.map_errors(UsageError, uri, "not_writable"):
            filesystem, path = self.filesystem(uri)
            with contextlib.suppress(FileNotFoundError):
                self._retried(uri, filesystem.rm_file, path)

    def check_readable(self, uri: str) -> None:
        """Checks that a file, a folder or the matches of a glob can be read now.

        Raises:
            UsageError: ``not_found``, ``forbidden`` or ``unreadable``.
        """
        storage = self._with_short_retry()
        try:
            if is_glob(uri) and not storage.exists(uri):
                if not storage.list(uri):
                    raise UsageError("not_found", f"no file matches {redact_uri(uri)}")
            elif not storage.is_folder(uri):
                with storage.open(uri) as file, storage.map_errors(UsageError, uri):
                    file.read(1)
        except UsageError as error:
            raise self._missing_bucket_error(uri, error) or error from None

    def check_writable(self, uri: str) -> None:
        """Checks that files can be written into the folder ``uri``, which is created where storage has folders.

        Writes and deletes a probe object: permissions cannot be queried otherwise.

        Raises:
            UsageError: ``not_found`` (no such bucket), ``forbidden`` or ``not_writable``.
        """
        probe = join(uri, _PROBE)
        if protocol_of(uri) in WEB:
            raise UsageError("not_writable", f"{redact_uri(uri)} cannot be written: HTTP servers are only read from")
        try:
            self._with_short_retry().write_bytes(probe, b"")
        except UsageError as error:
            without_probe = UsageError(error.code, error.message.replace(f"/{_PROBE}", ""))
            raise self._missing_bucket_error(uri, error) or without_probe from None
        with contextlib.suppress(UsageError):  # where deleting is forbidden, the empty object stays
            self._with_short_retry().remove(probe)

    def _with_short_retry(self) -> "Storage":
        """The same storage with a short retry limit, for checks that a user waits for."""
        storage = copy.copy(self)
        storage._retry_for_s = min(self._retry_for_s, _CHECK_RETRY_FOR_S)
        return storage

    def _retried(self, uri: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Returns ``call(...)``, with retries unless ``uri`` is local."""
        return call(*args, **kwargs) if is_local(uri) else retry(self._retry_for_s, call, *args, **kwargs)

    def _missing_bucket_error(self, uri: str, error: UsageError) -> UsageError | None:
        """A clearer error for a ``not_found`` whose bucket does not exist; else None."""
        if error.code != "not_found" or protocol_of(uri) not in PACKAGES:
            return None
        filesystem, path = self.filesystem(uri)
        bucket = path.split("/")[0]
        try:
            filesystem.ls(bucket)
        except FileNotFoundError:
            return UsageError(
                "not_found", f"there is no bucket {protocol_of(uri)}://{bucket}: create it, or correct the name"
            )
        except Exception:  # the bucket cannot be listed: the first error says more
            return None
        return None

    @contextlib.contextmanager
    def map_errors(
        self, kind: type[UsageError] | type[AudioError], uri: str, otherwise: str = "unreadable"
    ) -> Iterator[None]:
        """Maps exceptions of drivers to ``kind``, with a code and a message that names ``uri``.

        An AudioError because of credentials, of a service that does not respond or of a full disk is a StorageError.

        Catches every Exception: the drivers' exceptions have no common base (botocore's and aiohttp's are not
        OSError).
        """
        try:
            yield
        except RayscribeError as error:
            if kind is AudioError and isinstance(error, UsageError):  # a wrong scheme in a row fails that row only
                raise AudioError("unreadable", error.message) from error
            raise
        except Exception as error:
            cause = root_cause(error)
            code = error_code(cause) or otherwise
            name = redact_uri(uri)
            message = {
                "not_found": f"{name} does not exist",
                "forbidden": f"{name} is forbidden: {_forbidden_reason(cause)}",
                "not_writable": f"{name} cannot be written: {self._redacted_reason(cause)}",
                "unreadable": f"{name} cannot be read: {self._redacted_reason(cause)}",
            }[code]
            # A driver's message may contain the whole URL or a key; a local file's cannot.
            if kind is AudioError:
                storage_failed = code == "forbidden" or is_transient(cause)
                kind = StorageError if storage_failed else audio_error_kind(cause)
            raise kind(code, message) from (error if is_local(uri) else None)

    def _redacted_reason(self, error: BaseException) -> str:
        """A driver's message in one line, without secrets."""
        strerror = error.strerror if isinstance(error, OSError) else None
        text = " ".join((strerror or f"{type(error).__name__}: {error}").split())
        for options in (self._shared, *self._by_protocol.values()):
            for name, value in options.items():
                if isinstance(value, str) and value and _SECRET_OPTION.search(name):
                    text = text.replace(value, "…")
        return _URL_QUERY.sub(r"\1", text)


@contextlib.contextmanager
def _written_beside(path: str, data: bytes) -> Iterator[str]:
    """Writes a temporary file in the folder of ``path``, to be moved or linked there; yields its path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, part = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file)  # so that a power cut cannot leave an empty file under the name
        os.chmod(part, 0o666 & ~_UMASK)  # mkstemp creates files with mode 0600
        yield part
    finally:
        with contextlib.suppress(FileNotFoundError):  # it has been moved
            os.unlink(part)


def _link_new(path: str, data: bytes) -> bool:
    """``Storage.create_bytes`` of a local file."""
    with _written_beside(path, data) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with contextlib.suppress(FileExistsError), open(path, "xb") as file:
                return file.write(data) == len(data)
            return False
        return True


def _forbidden_reason(error: BaseException) -> str:
    if isinstance(error, PrivateHostError):
        return f"{error.strerror}, which a row may name with --allow-private-hosts only"
    code = f"{code}: " if (code := service_code(error)) and code.isalpha() else ""
    return f"{code}check the credentials (environment or --storage-options) and their permissions"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()  # once: it can only be read by setting it, and two threads at once could leave it at 0
