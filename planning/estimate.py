"""The plan without queues: what each stage can do an hour, the one that limits, time, cost, storage and network."""

from dataclasses import dataclass

from planning.rates import Rates
from planning.scenario import CLIP_BYTES_PER_S, Faults, Machines, Workload, block_size, tables_per_block

GBIT = 1e9 / 8  # bytes
# Text, segments and ids of an hour of speech in Parquet: 9,000 words and their times.
OUTPUT_MB_PER_SPEECH_HOUR = 0.2


@dataclass(frozen=True)
class Estimate:
    """A plan.

    Attributes:
        capacities: hours of audio an hour that each stage can do, by name.
        limits: the name of the stage that can do least.
        work_h: hours of work, without the start.
        start_h: hours until the first engine works.
        cost: of all machines for both; 0 without prices.
        storage_gbit_s: what the storage must deliver for the stage that limits to be busy, in Gbit/s.
        network_gbit_s: from Listeners to engines, in all.
        input_tb, output_gb: of the recordings and of the transcripts.
    """

    capacities: dict[str, float]
    limits: str
    work_h: float
    start_h: float
    cost: float
    storage_gbit_s: float
    network_gbit_s: float
    input_tb: float
    output_gb: float

    @property
    def wall_h(self) -> float:
        return self.start_h + self.work_h


def estimate(workload: Workload, machines: Machines, rates: Rates, faults: Faults) -> Estimate:
    """Computes a plan as if every stage were busy all the time that it can be."""
    capacities = {
        "Listeners": machines.listeners * _listened_h(workload, rates, faults),
        "engines": machines.engines * engine_rtfx(rates, machines) / max(workload.speech_share, 1e-9),
        "driver": driver_rows_per_s(workload, machines, rates) * workload.mean_s,
    }
    bytes_per_audio_s = workload.mb_per_hour * 1e6 / 3600
    if machines.storage_gbit_s:
        capacities["storage"] = machines.storage_gbit_s * GBIT / bytes_per_audio_s
    limits = min(capacities, key=lambda stage: capacities[stage])
    available = 1 / (1 + faults.interruptions_per_day / 86_400 * faults.replacement_s)
    rate = capacities[limits] * (1.0 if limits in ("driver", "storage") else available)
    work_h = workload.audio_h / rate
    start_h = max(rates.engine_start_s.value, rates.listener_start_s.value) / 3600
    return Estimate(
        capacities=capacities,
        limits=limits,
        work_h=work_h,
        start_h=start_h,
        cost=machines.price_per_hour * (work_h + start_h),
        storage_gbit_s=rate * bytes_per_audio_s / GBIT,
        network_gbit_s=rate * workload.speech_share * CLIP_BYTES_PER_S / GBIT,
        input_tb=workload.audio_h * workload.mb_per_hour / 1e6,
        output_gb=workload.speech_h * OUTPUT_MB_PER_SPEECH_HOUR / 1e3,
    )


def driver_rows_per_s(workload: Workload, machines: Machines, rates: Rates) -> float:
    """Recordings a second that the driver can pass on: it sends blocks, and receives the receipts of tables."""
    size = block_size(workload, machines)
    messages = 1 + tables_per_block(workload, machines, size)
    return size / (size * rates.driver_row_s.value + messages * rates.driver_block_s.value)


def engine_rtfx(rates: Rates, machines: Machines) -> float:
    """Seconds of speech a second of one engine that has as many clips as it takes."""
    return min(rates.engine_rtfx.value, machines.concurrent_clips * rates.clip_rtfx.value)


def _listened_h(workload: Workload, rates: Rates, faults: Faults) -> float:
    """Hours of audio an hour of one Listener."""
    return workload.mean_s / listen_s(workload.mean_s, rates, faults)


def listen_s(duration_s: float, rates: Rates, faults: Faults) -> float:
    """Seconds that a Listener needs for a recording, on average."""
    slow = 1 + faults.straggler_share * (faults.straggler_factor - 1)
    waiting = faults.throttled_share / (1 - faults.throttled_share) * faults.backoff_s
    return rates.recording_s.value + waiting + duration_s / rates.listener_rtfx.value * slow
