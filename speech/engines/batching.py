"""Batches of clips for an encoder, from calls that come one by one."""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from speech.engines.base import ClipRequest
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

    Recordings take turns: a pass has the oldest clip of the one whose turn it is, and those of any recording nearest to
    it in length. Little is padded where an encoder pads, and no short recording waits for all clips of a long one.
    Built on any thread; used from one event loop.

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
        # Oldest first, by recording, in the order of their turns.
        self._waiting = OrderedDict[str, list[_Waiting[Encoded]]]()
        self._running: asyncio.Task[None] | None = None

    async def encode(self, clip: ClipRequest) -> Encoded:
        """Encodes one clip.

        Raises:
            ValueError: it is too short.
            RuntimeError: PyTorch failed, for want of memory, for example.
            EngineDied: the GPU cannot be used any more.
        """
        self._encoder.check_length(len(clip.samples))
        waiting: _Waiting[Encoded] = _Waiting(clip.samples)
        self._waiting.setdefault(clip.recording_id, []).append(waiting)
        if self._running is None:
            self._running = asyncio.ensure_future(self._run())
        return await waiting.encoded

    async def _run(self) -> None:
        try:
            while self._drop_cancelled():
                if self._gather_s and self._may_gather() and len(self._next_pass()) == len(self._clips()):
                    await asyncio.sleep(self._gather_s)
                    if not self._drop_cancelled():
                        return
                recording_id, batch = next(iter(self._waiting)), self._next_pass()
                self._drop(batch)
                await self._encode(batch)
                if recording_id in self._waiting:  # behind those that have come meanwhile
                    self._waiting.move_to_end(recording_id)
        except Exception as error:  # of the encoder's ``passes``, which may compute on a GPU
            _fail(self._clips(), error)
        finally:
            self._waiting.clear()
            self._running = None

    def _clips(self) -> list[_Waiting[Encoded]]:
        return list(itertools.chain.from_iterable(self._waiting.values()))

    def _drop_cancelled(self) -> bool:
        """Drops clips that nobody waits for; returns whether others are waiting."""
        self._drop([clip for clip in self._clips() if clip.encoded.cancelled()])
        return bool(self._waiting)

    def _drop(self, clips_to_drop: Iterable[_Waiting[Encoded]]) -> None:
        dropped = set(clips_to_drop)
        for recording_id, clips in list(self._waiting.items()):
            clips[:] = [clip for clip in clips if clip not in dropped]
            if not clips:
                del self._waiting[recording_id]

    def _next_pass(self) -> list[_Waiting[Encoded]]:
        clips = self._clips()
        length = len(clips[0].samples)
        alike = sorted(clips, key=lambda clip: abs(len(clip.samples) - length))
        return alike[next(iter(self._encoder.passes([len(clip.samples) for clip in alike])))]

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
