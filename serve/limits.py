"""The places for requests: so many are answered at once, and once the endpoint is closed, none that is new."""

import asyncio
import contextlib
from collections.abc import Iterator

from serve.metrics import RequestMetrics
from speech.errors import RequestError


class AdmissionLimiter:
    """``most`` limiter, counted in ``metrics``."""

    def __init__(self, most: int, metrics: RequestMetrics) -> None:
        self._most = most
        self._metrics = metrics
        self._taken = 0
        self._closed = False
        self._left = asyncio.Event()  # set each time a place has become free

    @contextlib.contextmanager
    def acquire(self) -> Iterator[None]:
        """A place, for as long as it is held.

        Raises:
            RequestError: ``overloaded``: there is none.
        """
        if self._closed:
            raise RequestError("overloaded", "the endpoint is being stopped; try again in a moment")
        if self._taken >= self._most:
            raise RequestError(
                "overloaded", f"{self._taken} requests are being answered, the most at once; try again in a moment"
            )
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)
            self._left.set()

    async def close(self) -> None:
        """Gives no more places, and returns when all that were taken are free."""
        self._closed = True
        while self._taken:
            self._left.clear()
            await self._left.wait()

    def _count(self, change: int) -> None:
        self._taken += change
        self._metrics.in_hand(self._taken)
