"""An engine that needs time as a real one does, and no processor: for benches of everything around it."""

import asyncio
import heapq
import itertools
from functools import partial

from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.fake import FakeEngine
from speech.models.families import Family

TICK_S = 0.01


class Pacer:
    """Shares a rate among the clips in flight, none of which is faster than a clip alone.

    Args:
        engine_rtfx: seconds of speech a second, of all clips together.
        clip_rtfx: of one clip, at most.
    """

    def __init__(self, engine_rtfx: float, clip_rtfx: float) -> None:
        self._engine_rtfx, self._clip_rtfx = engine_rtfx, clip_rtfx
        self._decoded_s = 0.0  # of a clip that has been in flight from the start
        self._in_flight: list[tuple[float, int, asyncio.Future[None]]] = []  # a heap, by when they are decoded
        self._numbers = itertools.count()
        self._ticking: asyncio.Task[None] | None = None

    async def wait(self, clip: ClipRequest) -> None:
        """Returns when the clip is decoded."""
        decoded = asyncio.get_running_loop().create_future()
        heapq.heappush(self._in_flight, (self._decoded_s + clip.seconds, next(self._numbers), decoded))
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick())
        await decoded

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        then = loop.time()
        while self._in_flight:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            left_s = now - then
            then = now
            while self._in_flight and left_s > 0:
                speed = min(self._clip_rtfx, self._engine_rtfx / len(self._in_flight))
                until_next_s = max(0.0, self._in_flight[0][0] - self._decoded_s) / speed
                passed_s = min(left_s, until_next_s)
                self._decoded_s += speed * passed_s
                left_s -= passed_s
                if passed_s == until_next_s:
                    _, _, decoded = heapq.heappop(self._in_flight)
                    if not decoded.done():
                        decoded.set_result(None)


def start_paced(config: EngineConfig, family: Family, engine_rtfx: float, clip_rtfx: float) -> FakeEngine:
    """An ``EngineStarter``, once its rates are bound."""
    return FakeEngine(before=Pacer(engine_rtfx, clip_rtfx).wait)


def paced(engine_rtfx: float, clip_rtfx: float) -> "partial[FakeEngine]":
    """An ``EngineStarter`` with these rates."""
    return partial(start_paced, engine_rtfx=engine_rtfx, clip_rtfx=clip_rtfx)
