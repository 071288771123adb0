"""CPU seconds of this process and of all processes that it has started, by what they do, while they run."""

import time
from collections import defaultdict

import psutil

from planning.sampler import Sampler

EVERY_S = 0.5

# What a process does, and a part of its title or command line.
ROLES = {
    "driver": "",
    "attempts": "AttemptTracker",
    "GCS": "gcs_server",
    "raylet": "raylet/raylet",
    "Listeners": "(Listen)",
    "engines": "(Transcribe)",
    "vLLM": "EngineCore",
}
ONE = ("driver", "attempts", "GCS")  # of which a job has one each


class CpuTimes(Sampler):
    """Samples, twice a second while the ``with`` block runs, what every process has computed.

    A process that lives for less than a sample's time is not seen.
    """

    def __init__(self) -> None:
        super().__init__(EVERY_S)
        self._samples: dict[tuple[int, float], list[tuple[float, float]]] = defaultdict(list)
        self._roles: dict[tuple[int, float], str] = {}

    def between(self, start: float, end: float) -> dict[str, float]:
        """CPU seconds of each role between two times of ``time.time``."""
        seconds: dict[str, float] = defaultdict(float)
        for process, samples in self._samples.items():
            within = [cpu_s for at, cpu_s in samples if start <= at <= end]
            if within:
                seconds[self._roles[process]] += within[-1] - within[0]
        return dict(seconds)

    def sample(self) -> None:
        here = psutil.Process()
        for process in [here, *here.children(recursive=True)]:
            try:
                key = process.pid, process.create_time()
                times = process.cpu_times()
                if self._roles.get(key, "other") == "other":  # Ray titles a process when it has its actor
                    self._roles[key] = "driver" if process == here else _role(" ".join(process.cmdline()))
            except psutil.Error:
                continue
            self._samples[key].append((time.time(), times.user + times.system))


def _role(command: str) -> str:
    return next((role for role, part in ROLES.items() if part and part in command), "other")
