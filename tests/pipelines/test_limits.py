"""What limits a run, from queues and utilisation."""

import time

import pyarrow as pa
import pytest

from cluster.ray_internals import StageLoad
from pipelines.limits import Limits, what_limits
from pipelines.progress import Progress
from pipelines.stages import computing_s
from pipelines.summary import Summary

IDLE = StageLoad(queued=0, actors=2, in_flight=0, calls_per_actor=1)
LISTENING = StageLoad(queued=5, actors=2, in_flight=3, calls_per_actor=1)
DECODING = StageLoad(queued=9, actors=1, in_flight=8, calls_per_actor=4)
HALF_IDLE = StageLoad(queued=0, actors=1, in_flight=3, calls_per_actor=4)
STARTING = StageLoad(queued=9, actors=0, in_flight=0, calls_per_actor=4)


@pytest.mark.parametrize(
    ("listen", "transcribe", "waiting_share", "limit"),
    [
        (LISTENING, DECODING, 0.0, "engines"),
        (LISTENING, DECODING, 0.9, "engines"),  # what waits for engines is ready already
        (LISTENING, HALF_IDLE, 0.1, "Listeners"),
        (LISTENING, HALF_IDLE, 0.9, "storage"),
        (IDLE, HALF_IDLE, 0.0, None),
        (IDLE, STARTING, 0.0, None),
    ],
)
def test_what_limits(listen: StageLoad, transcribe: StageLoad, waiting_share: float, limit: str | None) -> None:
    assert what_limits(listen, transcribe, waiting_share) == limit


def receipts(listen_s: float, waiting_s: float) -> pa.Table:
    return pa.table({"listen_s": [listen_s], "waiting_s": [waiting_s]})


def test_the_most_frequent_is_named_and_then_forgotten() -> None:
    limits = Limits()
    assert limits.most == ""
    limits.add(LISTENING, DECODING, receipts(1.0, 0.0))
    for _ in range(3):
        limits.add(LISTENING, HALF_IDLE, receipts(1.0, 0.9))
    assert limits.most == "storage"
    limits.begin()
    limits.add(LISTENING, HALF_IDLE, receipts(1.0, 0.1))
    assert limits.most == "Listeners"


def test_the_progress_says_what_limits(capsys: pytest.CaptureFixture[str]) -> None:
    limits = Limits()
    limits.add(LISTENING, DECODING, receipts(1.0, 0.0))
    with Progress() as progress:
        progress.start(1, waiting_for="an engine")
        progress.update(Summary(ok=1), limits)
    assert "limited by engines" in capsys.readouterr().err


def test_computing_is_no_waiting() -> None:
    """Sleeping is; but not the time after it in which other threads have the cores."""
    before, began = computing_s(), time.perf_counter()
    time.sleep(0.1)
    slept = computing_s() - before
    assert time.perf_counter() - began - slept > 0.09
    began = time.perf_counter()
    while time.perf_counter() - began < 0.2:
        pass
    assert computing_s() - before - slept > 0.1
