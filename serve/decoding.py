"""Decodes a recording's parts while the Listener cuts the next."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

from serve.backend import ListenSummary
from speech.listener import ListenResult
from speech.recording import AUTO, Recording
from speech.transcriber import ClipTranscript

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Reads an asynchronous generator to its end in a task, however fast its items are taken."""

    def __init__(self, source: AsyncGenerator[T, None]) -> None:
        self.error: Exception | None = None  # of the source, which has ended with it
        self._items: asyncio.Queue[T | _End] = asyncio.Queue()
        self._task = asyncio.create_task(self._read(source))

    async def _read(self, source: AsyncGenerator[T, None]) -> None:
        try:
            async with contextlib.aclosing(source):
                async for item in source:
                    self._items.put_nowait(item)
        except Exception as error:
            self.error = error
        self._items.put_nowait(_END)

    async def __aiter__(self) -> AsyncIterator[T]:
        while not isinstance(item := await self._items.get(), _End):
            yield item
        if self.error:
            raise self.error

    async def aclose(self) -> None:
        """Closes the source, in the midst of it or after its end."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class _End:
    """Behind the last item."""


_END = _End()


class Decoding:
    """The clips of a recording, in time order, from parts that are decoded all at once.

    Where the language is to be detected, this is done with the first part in which somebody speaks.

    Args:
        recording: what is asked for.
        parts: from ``Backend.listen``.
        decode: decodes the part behind a handle.
        detect_language: of ``Backend``.

    Attributes:
        recording: in its language, once that has been detected.
    """

    def __init__(
        self,
        recording: Recording,
        parts: AsyncGenerator[ListenSummary, None],
        decode: Callable[[Recording, Any], AsyncGenerator[ClipTranscript, None]],
        detect_language: Callable[[Recording, Any], Awaitable[Recording]],
    ) -> None:
        self.recording = recording
        self._detect_language = detect_language
        self._listened: ListenResult | None = None
        self._decode = decode
        self._started: list[ReadAhead[ClipTranscript]] = []
        self._parts = ReadAhead(self._start(parts))

    async def _start(
        self, parts: AsyncGenerator[ListenSummary, None]
    ) -> AsyncGenerator[ReadAhead[ClipTranscript], None]:
        async with contextlib.aclosing(parts):
            async for part in parts:
                self._listened = part.listened
                if self.recording.options.language == AUTO:
                    self.recording = await self._detect_language(self.recording, part.handle)
                self._started.append(ReadAhead(self._decode(self.recording, part.handle)))
                yield self._started[-1]

    @property
    def listened(self) -> ListenResult:
        """What is known of the recording so far; all of it when all clips are there."""
        assert self._listened is not None, "there is a part before there is a clip, and one at the end in any case"
        return self._listened

    @property
    def listening_failed(self) -> bool:
        return self._parts.error is not None

    async def clips(self) -> AsyncGenerator[ClipTranscript, None]:
        """Raises what listening and decoding raise, where the first clip would be that is not there."""
        async for part in self._parts:
            async for clip in part:
                yield clip

    async def aclose(self) -> None:
        """Cancels what is not done."""
        await asyncio.gather(self._parts.aclose(), *(part.aclose() for part in self._started))
