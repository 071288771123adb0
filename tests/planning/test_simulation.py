"""The simulation: it agrees with arithmetic where that is exact, and shows what arithmetic does not."""

from dataclasses import replace

import pytest

from cluster.ray_internals import MAX_QUEUED_BLOCKS
from planning import simulation
from planning.estimate import estimate
from planning.rates import Rate, default_rates
from planning.scenario import Faults, Machines, Workload
from planning.simulation import MAX_QUEUED_TABLES, simulate

RATES = default_rates("A100")
CALLS = Workload(recordings=4_000, mean_s=300.0, speech_share=0.5)


def test_limits_are_those_of_the_job() -> None:
    assert MAX_QUEUED_TABLES == MAX_QUEUED_BLOCKS


@pytest.mark.parametrize(
    ("machines", "limits"),
    [
        (Machines(engines=2, listeners=16), "engines"),
        (Machines(engines=8, listeners=4), "Listeners"),
        (Machines(engines=1, listeners=8, concurrent_clips=7), "engines"),
        (Machines(engines=2, listeners=16, storage_gbit_s=0.02), "storage"),
    ],
)
def test_a_long_run_takes_as_long_as_its_slowest_stage(machines: Machines, limits: str) -> None:
    expected = estimate(CALLS, machines, RATES, Faults())
    assert expected.limits == limits
    assert simulate(CALLS, machines, RATES, Faults()).wall_s == pytest.approx(3600 * expected.wall_h, rel=0.15)


def test_many_short_calls_wait_for_the_driver() -> None:
    calls = Workload(recordings=20_000, mean_s=5.0, speech_share=0.5)
    rates = replace(
        RATES, engine_start_s=RATES.listener_start_s, driver_row_s=Rate(0.004, ""), driver_block_s=Rate(0.016, "")
    )
    simulated = simulate(calls, Machines(engines=8, listeners=64), rates, Faults())
    assert simulated.wall_s == pytest.approx(10 + 20_000 * (0.004 + 2 * 0.016 / 32), rel=0.1)
    assert simulated.driver > 0.9


def test_known_lengths_are_simulated_as_they_are() -> None:
    """One Listener, two calls in a block each; each call is heard for a second and decoded for one."""
    rates = replace(
        RATES,
        listener_rtfx=Rate(100.0, ""),
        recording_s=Rate(0.0, ""),
        engine_rtfx=Rate(100.0, ""),
        clip_rtfx=Rate(100.0, ""),
        commit_s=Rate(0.0, ""),
        driver_row_s=Rate(0.0, ""),
        driver_block_s=Rate(0.0, ""),
        listener_start_s=Rate(0.0, ""),
        engine_start_s=Rate(0.0, ""),
    )
    workload = Workload(recordings=2, mean_s=100.0, speech_share=1.0)
    simulated = simulate(workload, Machines(1, 1), rates, Faults(), durations=[100.0, 100.0])
    assert simulated.wall_s == pytest.approx(3.0, rel=1e-3)
    assert simulated.engines == pytest.approx(2 / 3, rel=1e-3)


def test_lost_nodes_cost_time_and_nothing_is_lost() -> None:
    machines = Machines(engines=8, listeners=64, engines_per_node=1, listeners_per_node=8)
    calm = simulate(CALLS, machines, RATES, Faults())
    stormy = simulate(CALLS, machines, RATES, Faults(interruptions_per_day=300, replacement_s=60))
    assert stormy.lost_nodes > 3
    assert stormy.repeated > 0
    assert stormy.wall_s > 1.02 * calm.wall_s
    assert calm.repeated == calm.lost_nodes == 0


def test_stragglers_and_throttling_cost_listeners_time() -> None:
    machines = Machines(engines=8, listeners=4)
    calm = simulate(CALLS, machines, RATES, Faults()).wall_s
    assert simulate(CALLS, machines, RATES, Faults(straggler_share=0.05)).wall_s > 1.2 * calm
    assert simulate(CALLS, machines, RATES, Faults(throttled_share=0.2)).wall_s > 1.2 * calm


def test_a_part_of_a_large_cluster_stands_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(engines=8, listeners=64)
    calls = replace(CALLS, recordings=20_000)
    whole = simulate(calls, machines, RATES, Faults()).wall_s
    monkeypatch.setattr(simulation, "MAX_BLOCKS", 200)
    assert simulate(calls, machines, RATES, Faults()).wall_s == pytest.approx(whole, rel=0.05)


def test_the_same_seed_gives_the_same_run() -> None:
    faults = Faults(interruptions_per_day=100, straggler_share=0.1)
    runs = [simulate(CALLS, Machines(2, 16), RATES, faults, seed=3) for _ in range(2)]
    assert runs[0] == runs[1]
