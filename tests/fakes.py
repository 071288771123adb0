"""A stand-in for a model, where a test is about everything but the model."""

import asyncio
from collections.abc import Collection, Mapping

import numpy as np

from speech.engine import ClipRequest, Decoding
from speech.errors import EngineDied, EngineError
from speech.listener import Clip
from speech.transcript import Usage


def clip(number: int, start_s: float = 0.0, end_s: float = 2.0, channel: int = 0) -> Clip:
    """A clip that ``FakeEngine`` knows by its number, which is its first sample."""
    return Clip(channel, start_s, end_s, np.full(round((end_s - start_s) * 100), number, np.int16))


class FakeEngine:
    """Answers clip N with ``texts[N]``, or "clip N", in reverse order of asking.

    Args:
        texts: by clip number.
        batch: answers nobody until so many wait, and then the last first.
        fails, dies: clips for which decode raises EngineError or EngineDied, at once.
        complete, avg_logprob: what it says of every text.
    """

    def __init__(
        self,
        texts: Mapping[int, str] | None = None,
        *,
        batch: int = 1,
        fails: Collection[int] = (),
        dies: Collection[int] = (),
        complete: bool = True,
        avg_logprob: float = -0.1,
    ) -> None:
        self.requests: list[ClipRequest] = []
        self.given_up: list[int] = []
        self.in_hand = 0
        self.most_in_hand = 0
        self._texts = texts or {}
        self._batch = batch
        self._fails, self._dies = fails, dies
        self._complete, self._avg_logprob = complete, avg_logprob
        self._waiting: list[asyncio.Future[None]] = []

    async def decode(self, clip: ClipRequest) -> Decoding:
        number = int(clip.samples[0])
        self.requests.append(clip)
        if number in self._fails:
            raise EngineError("engine_failed", f"clip {number} is too much")
        if number in self._dies:
            raise EngineDied("engine_died", f"clip {number} was the last")
        self.in_hand += 1
        self.most_in_hand = max(self.most_in_hand, self.in_hand)
        try:
            await self._turn()
        except asyncio.CancelledError:
            self.given_up.append(number)
            raise
        finally:
            self.in_hand -= 1
        text = self._texts.get(number, f"clip {number}")
        return Decoding(text, (), self._avg_logprob, self._complete, Usage(audio_tokens=10, output_tokens=number))

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if len(self._waiting) >= self._batch:
            for waiting in reversed(self._waiting):
                if not waiting.done():
                    waiting.set_result(None)
            self._waiting.clear()
        await turn

    async def check_health(self) -> None:
        pass

    def stop(self) -> None:
        pass
