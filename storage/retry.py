"""Retries storage operations after transient errors, with exponential backoff and full jitter.

Drivers retry single requests where they can (``storage.drivers``). This module retries whole operations, for what
no driver retries (a response body that breaks off or stalls, anything over plain HTTP) and for what lasts longer
than the driver's few attempts. ``not_found`` and ``forbidden`` are never retried.
"""

from collections.abc import Callable
from typing import Any

import tenacity

from storage.driver_errors import is_transient

# Seconds for one operation, counted from its first attempt. Most throttling and failovers last less; a longer limit
# would delay a run whose manifest names many rows on a dead server.
RETRY_FOR_S = 30.0
# The wait is random between 0 and 0.5 s, 1 s, 2 s, … up to 15 s: full jitter
# (M. Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015).
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0


def retry(retry_for_s: float, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns ``call(*args, **kwargs)``, retried after transient errors until ``retry_for_s`` has passed."""
    backoff = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)

    def wait(state: tenacity.RetryCallState) -> float:
        """The backoff, or what is left of the time: the last attempt is made when it has passed, and not later."""
        return min(backoff(state), max(0.0, retry_for_s - (state.seconds_since_start or 0.0)))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=wait,
        stop=tenacity.stop_after_delay(retry_for_s),
        reraise=True,
    )
    return retrying(call, *args, **kwargs)
