"""What benches of the job itself put in the model's place: an engine that costs nothing, or only time."""

import asyncio

from speech.engine import ClipRequest, Decoding, EngineConfig
from speech.models import Family
from speech.transcriber import WARM_UP


class NoopEngine:
    """Answers each clip, at once or after ``pause_s``, with its recording's id and its length.

    Args:
        pause_s: how long a clip takes.
        begun: a file in which each clip's recording is noted, a line each, when the clip is begun.
    """

    def __init__(self, pause_s: float, begun: str | None) -> None:
        self._pause_s = pause_s
        self._begun = begun

    async def decode(self, clip: ClipRequest) -> Decoding:
        recording = clip.id.rpartition("/")[0]
        if self._begun and clip.id != WARM_UP:
            with open(self._begun, "a") as file:  # short appends are atomic
                file.write(f"{recording}\n")
        await asyncio.sleep(self._pause_s)
        return Decoding(f"{recording}: {clip.seconds:.2f} seconds", (), None, True)

    async def check_health(self) -> None: ...

    def stop(self) -> None: ...


def start_noop(config: EngineConfig, family: Family, pause_s: float = 0.0, begun: str | None = None) -> NoopEngine:
    """In place of ``speech.engine.start_engine``."""
    return NoopEngine(pause_s, begun)
