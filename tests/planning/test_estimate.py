"""The plan without queues: what limits, and how long it takes, as a table."""

from dataclasses import replace

import pytest

from planning.estimate import estimate
from planning.rates import Rate, default_rates
from planning.scenario import Faults, Machines, Workload

CALLS = Workload(recordings=12_000, mean_s=300.0, speech_share=0.5)  # 1,000 hours
RATES = default_rates("A100")


@pytest.mark.parametrize(
    ("machines", "workload", "limits", "work_h"),
    [
        # 280 / 0.5 hours of audio an hour of an engine.
        (Machines(engines=1, listeners=8), CALLS, "engines", 1000 / 560),
        (Machines(engines=8, listeners=64), CALLS, "engines", 1000 / 4480),
        # 300 s in 300 / 360 + 0.1 s.
        (Machines(engines=8, listeners=2), CALLS, "Listeners", 1000 / (2 * 300 / (300 / 360 + 0.1))),
        # Calls of six seconds, 32 in a block and in its table.
        (
            Machines(engines=80, listeners=800),
            replace(CALLS, recordings=600_000, mean_s=6.0),
            "driver",
            600_000 * (RATES.driver_row_s.value + 2 * RATES.driver_block_s.value / 32) / 3600,
        ),
        # 150 s of speech in each call, 14 in a table: a block sent, and the receipts of three tables.
        (
            Machines(engines=2_000, listeners=16_000),
            replace(CALLS, recordings=10_000_000),
            "driver",
            10_000_000 * (RATES.driver_row_s.value + 4 * RATES.driver_block_s.value / 32) / 3600,
        ),
        # 57.6 MB an hour at 0.01 Gbit/s.
        (Machines(engines=1, listeners=8, storage_gbit_s=0.01), CALLS, "storage", 57_600 / 1.25 / 3600),
        # Few clips at once are slower than the engine could be.
        (Machines(engines=1, listeners=8, concurrent_clips=7), CALLS, "engines", 1000 / 280),
    ],
)
def test_the_slowest_stage_limits(machines: Machines, workload: Workload, limits: str, work_h: float) -> None:
    plan = estimate(workload, machines, RATES, Faults())
    assert plan.limits == limits
    assert plan.work_h == pytest.approx(work_h, rel=1e-6)
    assert plan.wall_h == pytest.approx(work_h + 120 / 3600)


def test_cost_is_of_all_machines_for_all_the_time() -> None:
    machines = Machines(engines=8, listeners=64, gpu_price=5.0, cpu_price=0.1)
    plan = estimate(CALLS, machines, RATES, Faults())
    assert plan.cost == pytest.approx((8 * 5.0 + 64 * 0.1) * plan.wall_h)


def test_storage_and_network_follow_from_the_rate() -> None:
    plan = estimate(CALLS, Machines(engines=1, listeners=8), RATES, Faults())
    assert plan.input_tb == pytest.approx(0.0576)
    assert plan.storage_gbit_s == pytest.approx(560 * 57.6e6 * 8 / 3600 / 1e9)
    assert plan.network_gbit_s == pytest.approx(280 * 32_000 * 8 / 1e9)


def test_faults_cost_time() -> None:
    listening = Machines(engines=8, listeners=2)
    calm = estimate(CALLS, listening, RATES, Faults()).work_h
    for faults in (Faults(straggler_share=0.1), Faults(throttled_share=0.5), Faults(interruptions_per_day=24)):
        assert estimate(CALLS, listening, RATES, faults).work_h > 1.05 * calm


def test_a_measured_engine_counts() -> None:
    fast = replace(RATES, engine_rtfx=Rate(560.0, "measured"))
    machines = Machines(engines=1, listeners=8)
    twice = estimate(CALLS, machines, RATES, Faults()).work_h / estimate(CALLS, machines, fast, Faults()).work_h
    assert twice == pytest.approx(2.0)
