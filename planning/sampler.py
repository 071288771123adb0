"""Measures something again and again, in a thread, while a ``with`` block runs."""

import threading
from abc import ABC, abstractmethod
from typing import Self


class Sampler(ABC):
    """Calls ``sample`` at the start of the block, every ``every_s`` seconds, and at its end."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sampler")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @abstractmethod
    def sample(self) -> None:
        """Measures once."""

    def _run(self) -> None:
        stopped = False
        while not stopped:
            self.sample()
            stopped = self._stopped.wait(self._every_s)
        self.sample()
