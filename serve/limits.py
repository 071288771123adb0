"""Admission: limits on requests in flight, in all and by API key, and on the bytes of their uploads."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from speech.errors import RequestError


class AdmissionLimiter:
    """Admits requests of one kind, transcripts or live sessions, up to a number at once.

    Args:
        what: the kind, for messages.
        max_in_flight: in all.
        max_per_key: of one API key.
        observe: called with the number in flight when it has changed.
    """

    def __init__(self, what: str, max_in_flight: int, max_per_key: int, observe: Callable[[int], None]) -> None:
        self._what = what
        self._max_in_flight = max_in_flight
        self._max_per_key = max_per_key
        self._observe = observe
        self._in_flight = Counter[str | None]()  # by key
        self._closed = False
        self._released = asyncio.Event()  # set whenever a request has ended

    @contextlib.contextmanager
    def acquire(self, key: str | None) -> Iterator[None]:
        """Admits a request for as long as the context lasts.

        Args:
            key: identifies its API key; None for an endpoint without keys, whose requests have no limit by key.

        Raises:
            RequestError: ``overloaded``, or ``too_many_requests`` of one key.
        """
        if self._closed:
            raise RequestError("overloaded", "the endpoint is shutting down; try again in a moment")
        if (total := self._in_flight.total()) >= self._max_in_flight:
            raise RequestError("overloaded", f"{total} {self._what} are in flight, the maximum; try again in a moment")
        if key is not None and self._in_flight[key] >= self._max_per_key:
            raise RequestError(
                "too_many_requests",
                f"{self._max_per_key} {self._what} of this API key are in flight, its maximum; try again in a moment",
            )
        self._count(key, +1)
        try:
            yield
        finally:
            self._count(key, -1)
            self._released.set()

    async def close(self) -> None:
        """Admits no more requests, and returns when none is in flight."""
        self._closed = True
        while self._in_flight.total():
            self._released.clear()
            await self._released.wait()

    def _count(self, key: str | None, change: int) -> None:
        self._in_flight[key] += change
        if not self._in_flight[key]:
            del self._in_flight[key]
        self._observe(self._in_flight.total())


class ByteBudget:
    """Limits the bytes of all uploads that are on disk.

    What does not fit is refused, and does not wait: uploads that wait for each other's bytes could wait for ever.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes

    @contextlib.contextmanager
    def upload(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that takes so many bytes more for one upload; on exit all are free again.

        Raises:
            RequestError: ``overloaded``, by the function.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self._free:
                raise RequestError("overloaded", "too many bytes are being uploaded at once; try again in a moment")
            self._free -= size
            taken += size

        try:
            yield take
        finally:
            self._free += taken
