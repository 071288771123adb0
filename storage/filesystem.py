"""One filesystem for a URI: local paths, ``s3://``, ``gs://``, ``az://``, ``https://``, by fsspec.

Everything that Rayscribe reads or writes outside the process goes through ``Storage``, so that
credentials, error codes and retries have one home. A Storage is a few options and nothing open: it
travels in a pickle to every worker, and there the filesystems of one process are shared by all its
threads (``storage.drivers``).

What goes wrong for a moment is tried again until ``retry_for_s`` is spent (``storage.retry``), but for local
disks. A recording is fetched range by range, and it is the range that is repeated (``storage.remote``).

What storage says when it fails reaches users as an error with a code (``not_found``, ``forbidden``,
``unreadable``, ``not_writable``) that names the URI. Neither credentials nor the query of a URL
(a presigned link is a credential) ever stand in a message, nor in the error chained to it.

Limits: a listing is held in memory whole (about 1 kB a file on S3), so for millions of files a
manifest is better than a folder. An object that drips, a byte now and then, passes for alive; whoever
reads it sets the limit.
"""

import contextlib
import copy
import functools
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import fsspec

from speech.errors import AudioError, RayscribeError, UsageError
from speech.redaction import redact_uri
from storage.drivers import PACKAGES, filesystem_class, shared_filesystem
from storage.remote import BLOCK_BYTES, RemoteFile
from storage.retry import RETRY_FOR_S, error_code, retry, root_cause
from storage.uris import LOCAL, SCHEME, WEB, is_glob, is_local, join, protocol_of, uri_like

# Options that stand for all protocols at once are for object stores. An HTTP server is anybody's, and
# is not told the user's keys.
_WITHOUT_SHARED_OPTIONS = LOCAL | WEB | {"memory"}
_SECRET_OPTION = re.compile(r"key|secret|token|password|credential|connection_string|sas", re.IGNORECASE)
_URL_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")

_SPOOL_BYTES = 16 << 20  # 17 minutes of 8 kHz stereo mu-law; a larger recording waits on disk
_PROBE = ".rayscribe-write-test"
# Before the job starts somebody waits for the answer, and a wrong endpoint is likelier than a brief fault.
_CHECK_RETRY_FOR_S = 1.0


class Storage:
    """Opens, lists and writes what URIs name. Picklable; safe to share between threads.

    Args:
        options: for object stores, under fsspec's names (``key``, ``secret``, ``token``,
            ``endpoint_url``, ``anon``, …), or keyed by protocol: ``{"s3": {…}, "https": {…}}``.
            Without options the drivers look where they always do (environment, profile, metadata).
        patience_s: how long one operation is tried again when what went wrong may pass.
    """

    def __init__(self, options: Mapping[str, Any] | None = None, retry_for_s: float = RETRY_FOR_S) -> None:
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
        self._retry_for_s = retry_for_s

    def __repr__(self) -> str:
        return f"Storage({', '.join([*self._shared, *self._by_protocol])})"

    def filesystem(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """The filesystem that holds ``uri``, and the path in it.

        Raises:
            UsageError: ``unknown_storage``, ``missing_driver`` or ``bad_storage_options``.
        """
        protocol = protocol_of(uri)
        if protocol in LOCAL:
            path = unquote(SCHEME.sub("", uri, count=1)) if SCHEME.match(uri) else uri
            return shared_filesystem("file", "{}"), os.path.abspath(path)
        driver = filesystem_class(protocol)
        aliases = (driver.protocol,) if isinstance(driver.protocol, str) else driver.protocol
        options = {} if protocol in _WITHOUT_SHARED_OPTIONS else self._shared
        for alias in aliases:
            options = options | self._by_protocol.get(alias, {})
        options = options | driver._get_kwargs_from_urls(uri)
        return shared_filesystem(protocol, json.dumps(options, sort_keys=True)), driver._strip_protocol(uri)

    def open(self, uri: str) -> BinaryIO:
        """Opens a file to be read, seekable where its storage is.

        Raises:
            UsageError: ``not_found``, ``forbidden`` or ``unreadable``.
        """
        with self.map_errors(UsageError, uri):
            filesystem, path = self.filesystem(uri)
            if is_local(uri):
                return open(path, "rb")
            return io.BufferedReader(self._open_remote(filesystem, path), 1 << 20)  # fsspec's own readline is slow

    def open_audio(self, uri: str) -> str | BinaryIO:
        """What ``speech.audio.decoding.open_audio`` wants: the path of a local file, else a seekable copy.

        Decoders seek back and forth, which over a network would cost a request each; the object is
        fetched once, block by block, and stays in memory if it is small. The caller closes it.

        Raises:
            AudioError: ``not_found``, ``forbidden`` or ``unreadable``; a local file's come from the decoder.
        """
        with self.map_errors(AudioError, uri), contextlib.ExitStack() as on_failure:
            filesystem, path = self.filesystem(uri)
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
        """Whether there is a file or folder."""
        with self.map_errors(UsageError, uri):
            return self._exists(uri)

    def _exists(self, uri: str) -> bool:
        filesystem, path = self.filesystem(uri)
        return bool(self._retried(uri, filesystem.exists, path))

    def is_folder(self, uri: str) -> bool:
        """Whether ``uri`` is a folder. Web pages are not, even those that list files."""
        with self.map_errors(UsageError, uri):
            filesystem, path = self.filesystem(uri)
            return protocol_of(uri) not in WEB and bool(self._retried(uri, filesystem.isdir, path))

    def list(self, uri: str) -> list[str]:
        """The URIs of all files in a folder, whatever their depth, or of those that a glob matches; sorted.

        Of a folder that does not exist there are none.
        """
        with self.map_errors(UsageError, uri):
            filesystem, path = self.filesystem(uri)
            if is_glob(uri) and not self.is_folder(uri):
                matches = self._retried(uri, filesystem.glob, path, detail=True)
                found = [name for name, info in matches.items() if info["type"] == "file"]
            else:
                found = self._retried(uri, filesystem.find, path)
            return sorted(uri_like(name, uri) for name in found)

    def sizes(self, folder: str) -> dict[str, int]:
        """The URIs of all files in a folder, whatever their depth, in order, and how many bytes each has."""
        with self.map_errors(UsageError, folder):
            filesystem, path = self.filesystem(folder)
            found = self._retried(folder, filesystem.find, path, detail=True)
            return {uri_like(name, folder): info["size"] for name, info in sorted(found.items())}

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Writes a small file whole or not at all, over one that may be there.

        Raises:
            UsageError: ``not_found``, ``forbidden`` or ``not_writable``.
        """
        with self.map_errors(UsageError, uri, "not_writable"):
            filesystem, path = self.filesystem(uri)
            if not is_local(uri):
                self._retried(uri, filesystem.pipe_file, path, data)  # one PUT: object stores show it whole
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
        with self.map_errors(UsageError, uri, "not_writable"):
            filesystem, path = self.filesystem(uri)
            if is_local(uri):
                return self._link_new(path, data)
            if self._exists(uri):
                return False
            try:
                self._retried(uri, filesystem.pipe_file, path, data, mode="create")
            except Exception:
                if self._exists(uri):
                    return bool(self._retried(uri, filesystem.cat_file, path) == data)
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
            with self.map_errors(UsageError, uri):
                filesystem, path = self.filesystem(uri)
                return cast(bytes, self._retried(uri, filesystem.cat_file, path))
        except UsageError as error:
            if error.code == "not_found":
                return None
            raise

    def remove(self, uri: str) -> None:
        """Takes a file away, if it is there."""
        with self.map_errors(UsageError, uri, "not_writable"):
            filesystem, path = self.filesystem(uri)
            with contextlib.suppress(FileNotFoundError):
                self._retried(uri, filesystem.rm_file, path)

    def check_readable(self, uri: str) -> None:
        """Returns if a file, a folder or what a glob matches can be read now.

        Raises:
            UsageError: ``not_found``, ``forbidden`` or ``unreadable``.
        """
        impatient = self._with_short_retry()
        try:
            if is_glob(uri) and not impatient.exists(uri):
                if not impatient.list(uri):
                    raise UsageError("not_found", f"no file matches {uri}")
            elif not impatient.is_folder(uri):
                with impatient.open(uri) as file, impatient.map_errors(UsageError, uri):
                    file.read(1)
        except UsageError as error:
            raise self._missing_bucket_error(uri, error) or error from None

    def check_writable(self, uri: str) -> None:
        """Returns if files can be written into the folder ``uri``, which is made where folders need making.

        Writes an object of its own and takes it away again: permissions cannot be known otherwise.

        Raises:
            UsageError: ``not_found`` (no such bucket), ``forbidden`` or ``not_writable``.
        """
        probe = join(uri, _PROBE)
        if protocol_of(uri) in WEB:
            raise UsageError("not_writable", f"{redact_uri(uri)} cannot be written: HTTP servers are only read from")
        try:
            self._with_short_retry().write_bytes(probe, b"")
        except UsageError as error:
            shown = UsageError(error.code, error.message.replace(f"/{_PROBE}", ""))
            raise self._missing_bucket_error(uri, error) or shown from None
        with contextlib.suppress(UsageError):  # where deleting is forbidden, an empty object stays
            self._with_short_retry().remove(probe)

    def _with_short_retry(self) -> "Storage":
        """The same storage, for somebody who waits."""
        impatient = copy.copy(self)
        impatient._retry_for_s = min(self._retry_for_s, _CHECK_RETRY_FOR_S)
        return impatient

    def _retried(self, uri: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What ``call`` returns; tried again for as long as storage's patience lasts, unless it is a disk's."""
        return call(*args, **kwargs) if is_local(uri) else retry(self._retry_for_s, call, *args, **kwargs)

    def _missing_bucket_error(self, uri: str, error: UsageError) -> UsageError | None:
        """The error to show instead of ``not_found`` when it is the bucket that does not exist."""
        if error.code != "not_found" or protocol_of(uri) not in PACKAGES:
            return None
        filesystem, path = self.filesystem(uri)
        bucket = path.split("/")[0]
        try:
            filesystem.ls(bucket)
        except FileNotFoundError:
            return UsageError(
                "not_found", f"there is no bucket {protocol_of(uri)}://{bucket}: create it, or mend the name"
            )
        except Exception:  # it cannot be asked about: the first error says more
            return None
        return None

    @contextlib.contextmanager
    def map_errors(
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
            true = root_cause(error)
            code = error_code(true) or otherwise
            shown = redact_uri(uri)
            sentence = {
                "not_found": f"{shown} does not exist",
                "forbidden": f"{shown} is forbidden: check the credentials (environment or --storage-options) "
                "and what they may do",
                "not_writable": f"{shown} cannot be written: {self._redacted_reason(true)}",
                "unreadable": f"{shown} cannot be read: {self._redacted_reason(true)}",
            }[code]
            # A driver's own error may quote the whole URL or a key; a local file's cannot.
            raise kind(code, sentence) from (error if is_local(uri) else None)

    def _redacted_reason(self, error: BaseException) -> str:
        """What a driver says, in one line and without secrets."""
        strerror = error.strerror if isinstance(error, OSError) else None
        text = " ".join((strerror or f"{type(error).__name__}: {error}").split())
        for options in (self._shared, *self._by_protocol.values()):
            for name, value in options.items():
                if isinstance(value, str) and value and _SECRET_OPTION.search(name):
                    text = text.replace(value, "…")
        return _URL_QUERY.sub(r"\1", text)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()  # once: it is the process's, and two threads that ask at a time could leave it at 0
