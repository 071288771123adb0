"""How many engines: as many as the audio that waits is worth.

A request may be four seconds of speech or four hours, so a count of requests says little about work.
Each engine replica tells Serve how much audio it has in hand (``QUEUED_AUDIO``); the policy asks for
as many replicas as it takes to bring that to a target for each. Serve keeps the result within bounds and
waits out its delays; without any replica it starts one at the first request.
"""

import math
from collections.abc import Iterable
from typing import Any

from ray.serve.config import AutoscalingContext

QUEUED_AUDIO = "queued_audio_s"


def engines_for(queued_audio_s: Iterable[float], waiting: float, target_s: float) -> int:
    """How many engines there should be.

    Args:
        queued_audio_s: for each engine, the seconds of audio that it has in hand.
        waiting: requests that no engine has taken; each counts as an engine's fair share, since nothing
            is known of it.
        target_s: seconds of audio in hand that are right for one engine.
    """
    return math.ceil(sum(queued_audio_s) / target_s + waiting)


class ByQueuedAudio:
    """Serve's policy: ``engines_for`` on what Serve knows."""

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        in_hand = (ctx.aggregated_metrics or {}).get(QUEUED_AUDIO, {})
        wanted = engines_for(in_hand.values(), ctx.total_queued_requests or 0, self._target_s)
        # An engine at work stays, however little it has left.
        return max(wanted, 1 if ctx.total_num_requests > 0 else 0), {}
