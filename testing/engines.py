"""Real engines for synchronous tests."""

import asyncio

from speech.engines.base import ClipRequest, DecodingResult, EngineConfig, start_engine
from speech.models.checkpoint import family_of
from testing.loops import LoopThread


class RunningEngine:
    """An engine on an event loop of its own, as in the job."""

    def __init__(self, config: EngineConfig) -> None:
        self._thread = LoopThread()
        self._engine = start_engine(config, family_of(config.model, config.engine))

    def decode(self, *clips: ClipRequest) -> list[DecodingResult]:
        """Decodes clips concurrently."""

        async def decode_all() -> list[DecodingResult]:
            return await asyncio.gather(*(self._engine.decode(clip) for clip in clips))

        return self._thread.run(decode_all())

    def stop(self) -> None:
        self._engine.stop()
        self._thread.stop()
