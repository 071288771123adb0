"""A binary file for libsndfile and FFmpeg that does not lose read errors.

Both libraries read a Python file through callbacks. An exception raised in a callback cannot pass through C: it
is printed to stderr and dropped, and the library reads it as the end of the file, so a network error in the middle
of an hour would give a short recording with status ok. ``Source`` stores the error and returns no bytes; the caller
calls ``raise_caught`` before using what was decoded.
"""

import io
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO


class Source:
    """A seekable binary file whose read errors are stored, not raised."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._caught: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._call(b"", self._file.read, size)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position: int = self._call(0, self._file.seek, offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._call(0, self._file.tell)
        return position

    def _call(self, default: Any, method: Callable[..., Any], *args: int) -> Any:
        """Returns the result of ``method``, or ``default`` from the first error on."""
        if self._caught is None:
            try:
                return method(*args)
            except Exception as error:  # object stores raise errors of any type; raise_caught raises it
                self._caught = error
        return default

    def descriptor(self) -> int | None:
        """The descriptor of an unbuffered local file, else None.

        libsndfile reads from a descriptor without calling Python for each buffer. A buffered file's position is not
        its descriptor's position, so those are read through callbacks.
        """
        return self._file.fileno() if isinstance(self._file, io.FileIO) else None

    def raise_caught(self) -> None:
        """Raises the first stored error, as an OSError."""
        if isinstance(self._caught, OSError):
            raise self._caught
        if self._caught is not None:
            raise OSError(f"{type(self._caught).__name__}: {self._caught}") from self._caught


class SourceRange(Source):
    """A byte range of a Source as a file of its own, with its own position.

    Args:
        source: the file; several ranges may share it.
        start, end: offsets in bytes; ``end`` None is the end of the file.
        replaced: bytes that are read in place of the file's own, by their offset in the range.
    """

    def __init__(
        self, source: Source, start: int = 0, end: int | None = None, replaced: Mapping[int, bytes] | None = None
    ) -> None:
        self._source = source
        self._start = start
        self._size = (source.seek(0, os.SEEK_END) if end is None else end) - start
        self._replaced = dict(replaced or {})
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        self._source.seek(self._start + self._position)
        data = self._source.read(left if size < 0 else min(size, left))
        for at, value in self._replaced.items():
            first, last = max(at, self._position), min(at + len(value), self._position + len(data))
            if first < last:
                head, tail = data[: first - self._position], data[last - self._position :]
                data = head + value[first - at : last - at] + tail
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def descriptor(self) -> int | None:
        return None

    def raise_caught(self) -> None:
        self._source.raise_caught()
