"""CPU seconds of this process and of all processes that it has started, by what they do, while they run."""

import threading
import time
from collections import defaultdict
from typing import Self

import psutil

EVERY_S = 0.5

# What a process does, and a part of its title or command line.
ROLES = {
    "driver": "",
    "attempts": "AttemptTracker",
    "GCS": "gcs_server",
    "raylet": "raylet/raylet",
    "Listeners": "(Listen)",
    "engines": "(Transcribe)",
}
ONE = ("driver", "attempts", "GCS")  # of which a job has one each


class CpuTimes:
    """Samples, twice a second while the ``with`` block runs, what every process has computed.

    A process that lives for less than a sample's time is not seen.
    """

    def __init__(self) -> None:
        self._samples: dict[tuple[int, float], list[tuple[float, float]]] = defaultdict(list)
        self._roles: dict[tuple[int, float], str] = {}
        self._stopped = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._sampler.join()

    def between(self, start: float, end: float) -> dict[str, float]:
        """CPU seconds of each role between two times of ``time.time``."""
        seconds: dict[str, float] = defaultdict(float)
        for process, samples in self._samples.items():
            within = [cpu_s for at, cpu_s in samples if start <= at <= end]
            if within:
                seconds[self._roles[process]] += within[-1] - within[0]
        return dict(seconds)

    def _sample(self) -> None:
        here = psutil.Process()
        while not self._stopped.wait(EVERY_S):
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
