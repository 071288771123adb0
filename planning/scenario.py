"""What is to be planned: the calls, the machines, their prices, and what goes wrong."""

import math
import random
from dataclasses import dataclass

from pipelines.blocks import listened_bytes, recordings_per_block
from speech.audio import SAMPLE_RATE

# int16, from Listeners to engines.
CLIP_BYTES_PER_S = 2 * SAMPLE_RATE


@dataclass(frozen=True)
class Workload:
    """The recordings.

    Attributes:
        recordings: how many.
        mean_s: mean length in seconds.
        speech_share: of the audio, summed over channels, so that a stereo call may have more than 1.
        clip_s: mean length of a clip.
        spread: standard deviation of the logarithm of the lengths; 0: all alike.
        mb_per_hour: of the files, in MB for each hour of audio.
    """

    recordings: int
    mean_s: float
    speech_share: float
    clip_s: float = 8.0
    spread: float = 0.8
    mb_per_hour: float = 57.6

    @property
    def audio_h(self) -> float:
        return self.recordings * self.mean_s / 3600

    @property
    def speech_h(self) -> float:
        return self.audio_h * self.speech_share

    def durations(self, rng: random.Random, count: int) -> list[float]:
        """Lengths of ``count`` recordings in seconds, lognormal as lengths of calls are."""
        center = math.log(self.mean_s) - self.spread**2 / 2
        return [rng.lognormvariate(center, self.spread) for _ in range(count)]


@dataclass(frozen=True)
class Machines:
    """What is rented.

    Attributes:
        engines: one a GPU.
        engines_per_node: that a lost node takes along.
        listeners: one a core.
        listeners_per_node: of a node.
        concurrent_clips: of an engine.
        gpu_price, cpu_price: for a GPU's and a core's hour, in any currency.
        storage_gbit_s: what the object storage delivers in all, in Gbit/s; 0: more than is needed.
    """

    engines: int
    listeners: int
    engines_per_node: int = 8
    listeners_per_node: int = 16
    concurrent_clips: int = 256
    gpu_price: float = 0.0
    cpu_price: float = 0.0
    storage_gbit_s: float = 0.0

    @property
    def price_per_hour(self) -> float:
        return self.engines * self.gpu_price + self.listeners * self.cpu_price


@dataclass(frozen=True)
class Faults:
    """What goes wrong.

    Attributes:
        interruptions_per_day: of each node, by failure or eviction of a spot node.
        replacement_s: until another node has taken its place and Ray has joined it.
        straggler_share, straggler_factor: of recordings, which take so many times as long to decode.
        throttled_share: of requests to the storage, which are retried after ``backoff_s`` on average.
    """

    interruptions_per_day: float = 0.0
    replacement_s: float = 300.0
    straggler_share: float = 0.0
    straggler_factor: float = 10.0
    throttled_share: float = 0.0
    backoff_s: float = 2.0


def block_size(workload: Workload, machines: Machines) -> int:
    """Recordings in a block, as the job makes them."""
    return recordings_per_block(workload.recordings, machines.listeners)


def table_speech_s(machines: Machines) -> float:
    """Seconds of speech in a table of clips, as Listeners cut them."""
    return listened_bytes(machines.engines) / CLIP_BYTES_PER_S


def tables_per_block(workload: Workload, machines: Machines, size: int) -> int:
    """Tables of clips that a Listener makes of a block of ``size`` recordings."""
    in_a_table = math.ceil(table_speech_s(machines) / max(1e-9, workload.mean_s * workload.speech_share))
    return math.ceil(size / in_a_table)
