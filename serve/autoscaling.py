"""Autoscaling of engines by pending audio.

A request may be four seconds of speech or four hours, so the number of requests says little about the load.
Each Transcriber replica reports its pending seconds of audio (``QUEUED_AUDIO``); the policy asks for as many
replicas as bring that down to a target for each. Serve applies its bounds and delays to the result; at zero
replicas it starts one at the first request.
"""

import math
from collections.abc import Iterable
from typing import Any

from ray.serve.config import AutoscalingContext

QUEUED_AUDIO = "queued_audio_s"


def engines_for(queued_audio_s: Iterable[float], waiting: float, target_s: float) -> int:
    """How many engines the load needs.

    Args:
        queued_audio_s: for each engine, its pending seconds of audio.
        waiting: requests that no engine has received; each counts as ``target_s``, as its length is unknown.
        target_s: pending seconds of audio for one engine.
    """
    return math.ceil(sum(queued_audio_s) / target_s + waiting)


class ByQueuedAudio:
    """Serve's autoscaling policy: ``engines_for`` on the replicas' reports."""

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        reported = (ctx.aggregated_metrics or {}).get(QUEUED_AUDIO, {})
        wanted = engines_for(reported.values(), ctx.total_queued_requests or 0, self._target_s)
        # An engine with a request in flight stays, however little audio is left.
        return max(wanted, 1 if ctx.total_num_requests > 0 else 0), {}
