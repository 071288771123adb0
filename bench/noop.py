"""What benches of the job itself put in the model's place: engines that cost nothing, or only time."""

import asyncio
import os

from speech.engine import ClipRequest, Decoding, EngineConfig
from speech.models import Family

# Where ``start_slow``'s engine writes a line for each clip that it decodes, so that work done twice shows.
DECODED = "RAYSCRIBE_BENCH_DECODED"


class NoopEngine:
    """Answers each clip, at once or after ``pause_s``, with its length; notes it in the file ``decoded``."""

    def __init__(self, pause_s: float = 0.0, decoded: str | None = None) -> None:
        self._pause_s = pause_s
        self._decoded = decoded

    async def decode(self, clip: ClipRequest) -> Decoding:
        await asyncio.sleep(self._pause_s)
        if self._decoded:
            with open(self._decoded, "a") as file:  # short appends are atomic
                file.write(f"{clip.id.rpartition('/')[0]}\n")
        return Decoding(f"{clip.seconds:.2f} seconds", (), None, True)

    async def check_health(self) -> None: ...

    def stop(self) -> None: ...


def start_noop(config: EngineConfig, family: Family) -> NoopEngine:
    """In place of ``speech.engine.start_engine``: an engine that costs nothing."""
    return NoopEngine()


def start_slow(config: EngineConfig, family: Family) -> NoopEngine:
    """In place of ``speech.engine.start_engine``: an engine slow enough to be caught at work."""
    return NoopEngine(pause_s=1.0, decoded=os.environ.get(DECODED))
