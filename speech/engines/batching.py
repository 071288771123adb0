"""Batches of clips for an encoder, from calls that come one by one."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from speech.engines.gpu_errors import check_gpu
from speech.errors import EngineDied

Encoded = TypeVar("Encoded", covariant=True)


class ClipEncoder(Protocol[Encoded]):
    """Encodes many clips in one pass: int16 mono at 16 kHz, each of shape (samples,)."""

    def check_length(self, samples: int) -> None:
        """Raises ValueError for a clip of too few samples to be encoded."""

    def passes(self, samples: Sequence[int]) -> Iterator[slice]:
        """Splits clips of so many samples, in their order, into passes of what is encoded well at once."""

    def encode(self, clips: Sequence[np.ndarray]) -> Sequence[Encoded]:
        """One result a clip, in order."""


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Encoded]):
    samples: np.ndarray
    encoded: "asyncio.Future[Encoded]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batching(Generic[Encoded]):
    """Encodes in a thread; clips that arrive during a pass are encoded together in the next.

    A pass has the clip that has waited longest, and those nearest to it in length: little padding where an encoder
    pads, and no clip waits for ever. Built on any thread; used from one event loop.

    Args:
        encoder: of the clips.
        gather_s: how long a pass that has room waits for more clips.
        may_gather: whether it should at all; asked before each pass.
    """

    def __init__(
        self, encoder: ClipEncoder[Encoded], gather_s: float = 0.0, may_gather: Callable[[], bool] = lambda: True
    ) -> None:
        self._encoder = encoder
        self._gather_s, self._may_gather = gather_s, may_gather
        self._waiting: list[_Waiting[Encoded]] = []
        self._running: asyncio.Task[None] | None = None

    async def encode(self, samples: np.ndarray) -> Encoded:
        """Encodes one clip: int16 mono at 16 kHz, shape (samples,).

        Raises:
            ValueError: it is too short.
            RuntimeError: PyTorch failed, for want of memory, for example.
            EngineDied: the GPU cannot be used any more.
        """
        self._encoder.check_length(len(samples))
        waiting: _Waiting[Encoded] = _Waiting(samples)
        self._waiting.append(waiting)
        if self._running is None:
            self._running = asyncio.ensure_future(self._run())
        return await waiting.encoded

    async def _run(self) -> None:
        try:
            while self._drop_cancelled():
                if self._gather_s and self._may_gather() and len(self._next_pass()) == len(self._waiting):
                    await asyncio.sleep(self._gather_s)
                    if not self._drop_cancelled():
                        return
                batch = self._next_pass()
                self._waiting = [each for each in self._waiting if each not in batch]
                await self._encode(batch)
        except Exception as error:  # of the encoder's ``passes``, which may compute on a GPU
            _fail(self._waiting, error)
        finally:
            self._waiting, self._running = [], None

    def _drop_cancelled(self) -> bool:
        """Drops clips that nobody waits for; returns whether others are waiting."""
        self._waiting = [each for each in self._waiting if not each.encoded.cancelled()]
        return bool(self._waiting)

    def _next_pass(self) -> list[_Waiting[Encoded]]:
        longest_waiting = len(self._waiting[0].samples)
        alike = sorted(self._waiting, key=lambda each: abs(len(each.samples) - longest_waiting))
        return alike[next(iter(self._encoder.passes([len(each.samples) for each in alike])))]

    async def _encode(self, batch: list[_Waiting[Encoded]]) -> None:
        try:
            encoded = await asyncio.to_thread(self._encoder.encode, [each.samples for each in batch])
        except Exception as error:
            _fail(batch, error)
            return
        for each, clip in zip(batch, encoded, strict=True):
            if not each.encoded.done():
                each.encoded.set_result(clip)


def _fail(clips: Sequence[_Waiting[Any]], error: Exception) -> None:
    """Gives the callers of clips the error, or EngineDied."""
    try:
        check_gpu(error)
    except EngineDied as died:
        error = died
    for each in clips:
        if not each.encoded.done():
            each.encoded.set_exception(error)
