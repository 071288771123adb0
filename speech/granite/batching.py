"""Batches of clips for the front end, from calls that come one by one."""

import asyncio
from dataclasses import dataclass, field

import numpy as np

from speech.granite.frontend import EncodedClip, FrontEnd


@dataclass(frozen=True)
class _Waiting:
    samples: np.ndarray
    encoded: "asyncio.Future[EncodedClip]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class BatchingFrontEnd:
    """Encodes in a thread; clips that arrive during a pass are encoded together in the next.

    Built on any thread; used from one event loop.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None

    async def encode(self, samples: np.ndarray) -> EncodedClip:
        """Encodes one clip: int16 mono at 16 kHz, shape (samples,).

        Raises:
            ValueError: it is too short.
            RuntimeError: PyTorch failed, for want of memory, for example.
        """
        self._front_end.check_length(len(samples))
        waiting = _Waiting(samples)
        self._waiting.append(waiting)
        if self._running is None:
            self._running = asyncio.ensure_future(self._run())
        return await waiting.encoded

    async def _run(self) -> None:
        try:
            while waiting := [each for each in self._waiting if not each.encoded.cancelled()]:
                batch = waiting[next(self._front_end.passes([len(each.samples) for each in waiting]))]
                self._waiting = waiting[len(batch) :]
                await self._encode(batch)
        finally:
            self._waiting, self._running = [], None

    async def _encode(self, batch: list[_Waiting]) -> None:
        try:
            encoded = await asyncio.to_thread(self._front_end.encode, [each.samples for each in batch])
        except Exception as error:
            for each in batch:
                if not each.encoded.done():
                    each.encoded.set_exception(error)
            return
        for each, clip in zip(batch, encoded, strict=True):
            if not each.encoded.done():
                each.encoded.set_result(clip)
