"""A binary file for libsndfile and FFmpeg that does not lose read errors.

Both libraries read a Python file through callbacks. An exception raised in a callback cannot pass through C: it
is printed to stderr and dropped, and the library reads it as the end of the file, so a network error in the middle
of an hour would give a short recording with status ok. ``Source`` stores the error and returns no bytes; the caller
calls ``raise_caught`` before using what was decoded.
"""

import io
import os
from collections.abc import Callable
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
