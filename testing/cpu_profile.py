"""CPU time of this process and its children, by what they do, while a benchmark runs."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psutil

SAMPLE_S = 0.2


def role_of(title: str) -> str:
    """What a process of Rayscribe, Ray or vLLM does, by its command line."""
    for part, role in ROLES.items():
        if part in title:
            return role
    return "other"


# The first part that a title has counts.
ROLES = {
    "Listen": "Listeners",
    "Transcribe": "engine actor",
    "EngineCore": "vLLM",
    "AttemptTracker": "attempts",
    "ray::": "Ray's other workers",
    "default_worker.py": "Ray's other workers",
    "raylet/raylet": "raylet",
    "gcs_server": "GCS",
    "/ray/": "Ray's agents",
}


class CpuProfile:
    """Samples CPU times in a thread, from the start of the context to its end."""

    def __init__(self, role: Callable[[str], str] = role_of) -> None:
        self._role = role
        self._samples: list[tuple[float, dict[int, tuple[str, float]]]] = []  # time; role and CPU seconds by pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def seconds(self, start_s: float, end_s: float) -> dict[str, float]:
        """CPU seconds by role between two times of ``time.time``."""
        within = [sample for at, sample in self._samples if start_s <= at <= end_s]
        used: dict[str, float] = defaultdict(float)
        for pid in {pid for sample in within for pid in sample}:
            of_process = [sample[pid] for sample in within if pid in sample]
            (_, first_s), (role, last_s) = of_process[0], of_process[-1]
            used[role] += last_s - (first_s if pid in within[0] else 0.0)
        return dict(used)

    def _run(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(SAMPLE_S):
            sample: dict[int, tuple[str, float]] = {}
            for process in (own, *own.children(recursive=True)):
                try:
                    # Read each time: Ray renames a process when it becomes an actor.
                    role = "driver" if process == own else self._role(" ".join(process.cmdline()))
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                sample[process.pid] = role, times.user + times.system
            self._samples.append((time.time(), sample))
