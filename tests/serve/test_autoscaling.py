"""The autoscaling of engines by queued audio."""

from typing import Any

import pytest
from ray.serve.config import AutoscalingContext

from serve.autoscaling import QUEUED_AUDIO, ByQueuedAudio, engine_bounds, engines_for
from serve.settings import ServedModel
from speech.errors import UsageError


@pytest.mark.parametrize(
    ("queued", "waiting", "expected"),
    [
        ([], 0, 0),
        ([0.0], 0, 0),
        ([10.0], 0, 1),
        ([600.0], 0, 1),
        ([601.0], 0, 2),
        ([3000.0, 0.0], 0, 5),  # one long recording: others cannot share it, but can take the next
        ([300.0, 300.0, 300.0], 0, 2),
        ([], 1, 1),
        ([600.0], 2.5, 4),
    ],
)
def test_engines_follow_the_queued_audio(queued: list[float], waiting: float, expected: int) -> None:
    assert engines_for(queued, waiting, target_s=600.0) == expected


def context(**known: Any) -> AutoscalingContext:
    unset = dict.fromkeys(
        ("deployment_id", "deployment_name", "app_name", "raw_metrics", "last_scale_up_time", "last_scale_down_time")
    )
    rest = {"current_num_replicas": 1, "target_num_replicas": 1, "running_replicas": [], "policy_state": {}}
    bounds = {"capacity_adjusted_min_replicas": 0, "capacity_adjusted_max_replicas": 8}
    metrics = {"total_num_requests": 0.0, "total_queued_requests": 0.0, "aggregated_metrics": None}
    return AutoscalingContext(**unset, **rest, **bounds, **(metrics | known), current_time=0.0, config=None)


def test_the_policy_reads_the_replicas_reports() -> None:
    policy = ByQueuedAudio(target_s=60.0)
    busy = {QUEUED_AUDIO: {"one": 100.0, "two": 90.0}, "other": {"one": 1e9}}
    assert policy(context(aggregated_metrics=busy, total_num_requests=5.0)) == (4, {})
    assert policy(context(aggregated_metrics={QUEUED_AUDIO: {"one": 0.0}})) == (0, {})
    assert policy(context()) == (0, {})


def test_an_engine_with_a_request_in_flight_stays() -> None:
    assert ByQueuedAudio(target_s=60.0)(context(total_num_requests=1.0)) == (1, {})


@pytest.mark.parametrize(
    ("models", "min_engines", "places", "bounds"),
    [
        ([{}], None, 4, [(4, 4)]),
        ([{}], 0, 4, [(0, 4)]),
        ([{}], 9, 4, [(4, 4)]),
        ([{}, {}], None, 4, [(2, 2), (2, 2)]),
        ([{}, {}], None, 3, [(2, 2), (1, 1)]),
        ([{}, {}], 0, 1, [(0, 1), (0, 1)]),  # one at a time
        ([{}, {"min_engines": 0}], 1, 4, [(1, 4), (0, 3)]),
        ([{}, {"min_engines": 0}], None, 4, [(4, 4), (0, 0)]),
        ([{"engines": 3}, {"min_engines": 0}], None, 4, [(3, 3), (0, 1)]),
        ([{"engines": 1}, {"engines": 2}], None, 8, [(1, 1), (2, 2)]),
        ([{}, {}], None, 1, [(1, 1), (0, 0)]),
        ([{"min_engines": 2}, {"min_engines": 2}], None, 3, [(2, 2), (2, 2)]),
    ],
)
def test_models_share_the_engines_there_is_room_for(
    models: list[dict[str, int]], min_engines: int | None, places: int, bounds: list[tuple[int, int]]
) -> None:
    served = [ServedModel(**each) for each in models]
    if any(most < 1 for _, most in bounds) or sum(least for least, _ in bounds) > places:
        with pytest.raises(UsageError, match=f"room for {places} engines"):
            engine_bounds(served, min_engines, places)
    else:
        assert engine_bounds(served, min_engines, places) == bounds
