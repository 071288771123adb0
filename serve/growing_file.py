"""An upload in a file of this machine, which can be read while it arrives."""

import contextlib
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self, cast

# How often the file's size is looked at, and for how long it may stay the same.
POLL_S = 0.005
STALL_S = 10.0


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file for other processes of this machine and user.

    Attributes:
        path: what they open; the file itself may have no name.
        size: bytes that it has, or will have.
    """

    path: str
    size: int

    @classmethod
    def of(cls, file: BinaryIO, size: int) -> Self:
        """A file that this process has open and that may have no name. Linux only."""
        descriptor = file.fileno()  # a spooled file goes to disk with this
        file.flush()
        return cls(f"/proc/{os.getpid()}/fd/{descriptor}", size)

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        with open(self.path, "rb", buffering=0) as file:
            complete = os.fstat(file.fileno()).st_size >= self.size
            yield cast(BinaryIO, file if complete else GrowingFile(file, self.size))


class GrowingFile(io.RawIOBase):
    """Reads a file to which another process appends. A read waits for its bytes.

    Not an ``io.FileIO``: libsndfile would read its descriptor, and take the end of what is there for the file's.

    Args:
        file: unbuffered; closed by the caller.
        size: bytes that the file will have.
    """

    def __init__(self, file: io.FileIO, size: int) -> None:
        self._descriptor = file.fileno()
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """As of a raw file that is complete.

        Raises:
            TimeoutError: the file has not grown for STALL_S.
        """
        end = self._size if size < 0 else min(self._position + size, self._size)
        if end <= self._position:
            return b""
        self._wait_for(end)
        data = os.pread(self._descriptor, end - self._position, self._position)
        self._position += len(data)
        return data

    def _wait_for(self, end: int) -> None:
        seen, since = -1, time.monotonic()
        while (there := os.fstat(self._descriptor).st_size) < end:
            if there != seen:
                seen, since = there, time.monotonic()
            elif time.monotonic() > since + STALL_S:
                raise TimeoutError(f"the upload has not gone on for {STALL_S:.0f} s")
            time.sleep(POLL_S)
