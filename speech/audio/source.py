"""The bytes of one recording, as C libraries can be trusted to read them.

libsndfile and FFmpeg read a Python file through callbacks, and an exception can't travel through C: it is
printed to stderr, dropped, and the library takes it for the end of the file. A network error in the middle
of an hour would become a short recording without a word. So errors are kept here, the library sees the end
of the file, and whoever called it asks ``raise_caught`` before believing what came out.
"""

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO


class Source:
    """A seekable binary file whose errors are kept instead of raised."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._caught: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._kept(b"", self._file.read, size)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position: int = self._kept(0, self._file.seek, offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._kept(0, self._file.tell)
        return position

    def _kept(self, instead: Any, method: Callable[..., Any], *args: int) -> Any:
        """What ``method`` returns, or ``instead`` from the first error on."""
        if self._caught is None:
            try:
                return method(*args)
            except Exception as error:  # object stores raise what they like; raise_caught passes it on
                self._caught = error
        return instead

    def descriptor(self) -> int | None:
        """A local file's descriptor, from which libsndfile reads without a call to Python for each buffer.

        Only of an unbuffered file: a buffered one's position is not its descriptor's.
        """
        return self._file.fileno() if isinstance(self._file, io.FileIO) else None

    def raise_caught(self) -> None:
        """Raises the first error met since the file was opened, as an OSError."""
        if isinstance(self._caught, OSError):
            raise self._caught
        if self._caught is not None:
            raise OSError(f"{type(self._caught).__name__}: {self._caught}") from self._caught
