"""The autoscaling of engines by queued audio."""

from typing import Any

import pytest
from ray.serve.config import AutoscalingContext

from serve.autoscaling import QUEUED_AUDIO, ByQueuedAudio, engines_for


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
