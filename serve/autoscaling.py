"""Autoscaling of engines by pending audio.

A request may be four seconds of speech or four hours, so the number of requests says little about the load.
Each Transcriber replica reports its pending seconds of audio (``QUEUED_AUDIO``); the policy asks for as many
replicas as bring that down to a target for each. Serve applies its bounds and delays to the result; at zero
replicas it starts one at the first request.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ray.serve.config import AutoscalingContext

from cluster.nodes import share_engines
from serve.settings import ServedModel
from speech.errors import UsageError

QUEUED_AUDIO = "queued_audio_s"


def engine_bounds(models: Sequence[ServedModel], min_engines: int | None, places: int) -> list[tuple[int, int]]:
    """The least and the most engine replicas of each model.

    Args:
        models: of the endpoint.
        min_engines: of models that do not say; None: an equal part of the places.
        places: engines that there is room for.

    Raises:
        UsageError: ``bad_option``: some model would never have an engine.
    """
    given = [min_engines if model.min_engines is None else model.min_engines for model in models]
    held = [0 if least is None else min(least, places) for least in given]
    wanting = [float(least is None) for least in given]
    limits = [places if model.engines is None else min(model.engines, places) for model in models]
    least = share_engines(wanting, places, held, limits)
    bounds = [(few, max(few, min(limit, places - sum(least) + few))) for few, limit in zip(least, limits, strict=True)]
    if sum(least) > places or any(
        most < 1 or (want and not few) for (few, most), want in zip(bounds, wanting, strict=True)
    ):
        raise UsageError(
            "bad_option",
            f"there is room for {places} engines, and {len(models)} models: give more --engines, or 'min_engines: 0' "
            "to models that may wait until others are idle",
        )
    return bounds


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
