"""Admission: a limited number of requests in flight, and none that is new once the endpoint is closed."""

import asyncio
import contextlib
from collections.abc import Iterator

from serve.metrics import RequestMetrics
from speech.errors import RequestError


class AdmissionLimiter:
    """Admits at most ``max_requests`` at once; ``metrics`` has the current number."""

    def __init__(self, max_requests: int, metrics: RequestMetrics) -> None:
        self._max_requests = max_requests
        self._metrics = metrics
        self._in_flight = 0
        self._closed = False
        self._released = asyncio.Event()  # set whenever a request has ended

    @contextlib.contextmanager
    def acquire(self) -> Iterator[None]:
        """Admits a request for as long as the context lasts.

        Raises:
            RequestError: ``overloaded``.
        """
        if self._closed:
            raise RequestError("overloaded", "the endpoint is shutting down; try again in a moment")
        if self._in_flight >= self._max_requests:
            raise RequestError(
                "overloaded", f"{self._in_flight} requests are in flight, the maximum; try again in a moment"
            )
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)
            self._released.set()

    async def close(self) -> None:
        """Admits no more requests, and returns when none is in flight."""
        self._closed = True
        while self._in_flight:
            self._released.clear()
            await self._released.wait()

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._metrics.in_flight(self._in_flight)
