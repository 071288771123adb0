"""Which pending clip an engine decodes next: round-robin over recordings, live audio first.

First come, first served would let the hundreds of clips of one long recording delay every short one behind it.
Here each turn takes one clip of each recording with pending clips, in the order of its first; a live session's
clips are taken before all others, since somebody waits for each.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator


class ClipSlots:
    """A limited number of slots. Used from one event loop.

    Args:
        slots: how many clips may hold one at once.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._live: _Pending = OrderedDict()
        self._recorded: _Pending = OrderedDict()

    @contextlib.asynccontextmanager
    async def acquire(self, recording_id: str, *, live: bool) -> AsyncIterator[None]:
        """Holds a slot for one clip, for as long as the context lasts."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(self._live if live else self._recorded, recording_id)
        try:
            yield
        finally:
            self._release()

    async def _wait(self, pending: "_Pending", recording_id: str) -> None:
        granted = asyncio.get_running_loop().create_future()
        pending.setdefault(recording_id, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # granted in the same turn of the loop
                self._release()
            raise

    def _release(self) -> None:
        """Grants the slot to the next pending clip, if there is one."""
        for pending in (self._live, self._recorded):
            while pending:
                if not (granted := _next(pending)).done():  # its clip may have been cancelled
                    granted.set_result(None)
                    return
        self._free += 1


_Pending = OrderedDict[str, deque[asyncio.Future[None]]]


def _next(pending: _Pending) -> asyncio.Future[None]:
    """Removes the first clip of the first recording, and moves the recording to the end."""
    recording_id, clips = next(iter(pending.items()))
    granted = clips.popleft()
    if clips:
        pending.move_to_end(recording_id)
    else:
        del pending[recording_id]
    return granted
