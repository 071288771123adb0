"""Which pending clip an engine decodes next: round-robin over recordings, live audio first.

First come, first served would let the hundreds of clips of one long recording delay every short one behind it.
Here each turn takes one clip of each recording with pending clips, in the order of its first; a live session's
clips are taken before all others, because each is needed at once. And where requests must be answered soon, one
recording holds only a share of the slots: a clip that is decoded in one batch with 64 others takes as long as they do.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator


class ClipSlots:
    """A limited number of slots. Used from one event loop.

    Args:
        slots: how many clips may hold one at once.
        max_per_recording: how many of them may be of one recording.
    """

    def __init__(self, slots: int, max_per_recording: int) -> None:
        self._free = slots
        self._max_per_recording = max_per_recording
        self._held = Counter[str]()  # by recording
        self._live: _Pending = OrderedDict()
        self._recorded: _Pending = OrderedDict()

    @contextlib.asynccontextmanager
    async def acquire(self, recording_id: str, *, live: bool) -> AsyncIterator[None]:
        """Holds a slot for one clip, for as long as the context lasts."""
        granted = asyncio.get_running_loop().create_future()
        pending = self._live if live else self._recorded
        pending.setdefault(recording_id, deque()).append(granted)
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # granted in the same turn of the loop
                self._release(recording_id)
            raise
        try:
            yield
        finally:
            self._release(recording_id)

    def _release(self, recording_id: str) -> None:
        self._free += 1
        self._held[recording_id] -= 1
        if not self._held[recording_id]:
            del self._held[recording_id]
        self._grant()

    def _grant(self) -> None:
        """Grants free slots to pending clips for as long as there are both."""
        while self._free and (recording_id := self._grant_next(self._live) or self._grant_next(self._recorded)):
            self._free -= 1
            self._held[recording_id] += 1

    def _grant_next(self, pending: "_Pending") -> str | None:
        """Grants a slot to a clip of the first recording below its limit, and moves the recording to the end.

        Returns:
            The recording's id; None if no clip may be granted a slot.
        """
        for recording_id, clips in list(pending.items()):
            while clips and clips[0].done():  # cancelled
                clips.popleft()
            if clips and self._held[recording_id] < self._max_per_recording:
                clips.popleft().set_result(None)
                pending.move_to_end(recording_id)
                return recording_id
            if not clips:
                del pending[recording_id]
        return None


_Pending = OrderedDict[str, deque[asyncio.Future[None]]]
