"""A file in object storage or on the web, read as if nothing ever went wrong on the way."""

import io
import os
from collections.abc import Callable
from typing import Any, cast

from storage.retry import retry

BLOCK_BYTES = 8 << 20  # one request; large enough that its latency is small beside its transfer


class RemoteFile(io.RawIOBase):
    """A remote file whose reads are tried again, each from where the last one ended.

    A web server that knows no ranges sends a stream, and one that has broken stays broken: it is begun
    anew, and what was read before is stepped over. Some such servers say so beforehand, some do not.
    """

    def __init__(self, open_file: Callable[..., Any], retry_for_s: float) -> None:
        self._open_file = open_file
        self._retry_for_s = retry_for_s
        self._file = retry(retry_for_s, open_file, block_size=BLOCK_BYTES)
        self._unseekable = not isinstance(getattr(self._file, "size", None), int)
        self._broken = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return not self._unseekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return cast(int, self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._file.tell())

    def read(self, size: int = -1) -> bytes:
        return cast(bytes, retry(self._retry_for_s, self._read, size))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        if self._broken:
            self._reopen_stream()
        try:
            return cast(bytes, self._file.read(size))
        except ValueError:  # so fsspec tells of a server that has ignored the range
            if self._unseekable:
                raise
            self._unseekable = self._broken = True
            return self._read(size)
        except Exception:
            self._broken = self._unseekable
            raise

    def _reopen_stream(self) -> None:
        file, at = self._open_file(block_size=0), self._file.tell()  # 0: as a stream
        while file.tell() < at:
            if not file.read(min(BLOCK_BYTES, at - file.tell())):
                raise EOFError("it is shorter than it was")
        self._file.close()
        self._file, self._broken = file, False

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
