"""A file in object storage or on a web server, whose reads are retried."""

import io
import os
from collections.abc import Callable
from typing import Any, cast

from storage.retry import retry

BLOCK_BYTES = 8 << 20  # of one request: large enough that latency is small beside transfer time


class RemoteFile(io.RawIOBase):
    """A remote file. A read that fails is retried from the position where the last one ended.

    A web server without range requests sends a stream, which cannot be resumed after an error: the file is
    requested again and the bytes already read are skipped. Some such servers announce that they have no
    ranges, some do not.
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
            data = cast(bytes, self._file.read(size))
            if not data and size and not self._unseekable and self._file.tell() < self._file.size:
                raise EOFError("the file is shorter than before")  # 416: fsspec takes it for the end
            return data
        except ValueError:  # fsspec raises this when a server ignored the range
            if self._unseekable:
                raise
            self._unseekable = self._broken = True
            return self._read(size)
        except Exception:
            self._broken = self._unseekable
            raise

    def _reopen_stream(self) -> None:
        file, position = self._open_file(block_size=0), self._file.tell()  # 0: as a stream
        while file.tell() < position:
            if not file.read(min(BLOCK_BYTES, position - file.tell())):
                raise EOFError("the file is shorter than before")
        self._file.close()
        self._file, self._broken = file, False

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
