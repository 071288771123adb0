"""The datasets of a run's models: which run at a time, on how many engines, and their receipts as one stream.

Each model has a work list and a dataset of its own. Where there are fewer places for engines than models, the models
with most work are first; the places of one that has ended go to the others.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from queue import SimpleQueue
from typing import Protocol

import pyarrow as pa

from cluster.nodes import share_engines

# For a dataset to end after the run has failed, before the run goes on to do so.
STOP_S = 30.0


class ModelRun(Protocol):
    """One model's dataset."""

    def receipts(self) -> Iterator[pa.Table]:
        """Executes it; yields what it has committed."""

    def grow(self, engines: int) -> None:
        """Lets it have more engines."""

    def stop(self) -> None:
        """Ends it; called from another thread than ``receipts``."""


Begin = Callable[[int, int], ModelRun]  # (model, engines) → its run


def run_models(recordings: Mapping[int, int], places: int, begin: Begin) -> Generator[tuple[int, pa.Table], None, None]:
    """Runs the datasets and yields (model, receipts).

    Args:
        recordings: of each model's work list.
        places: engines that there is room for.
        begin: makes the run of a model, on so many engines.

    Raises:
        Exception: whatever a dataset has raised; the others are stopped.
    """
    if len(recordings) == 1:  # in this thread, which a signal interrupts
        for model in recordings:
            yield from ((model, batch) for batch in begin(model, places).receipts())
        return
    yield from _Together(recordings, places, begin)


class _Together:
    """Several datasets, each in a thread of its own."""

    def __init__(self, recordings: Mapping[int, int], places: int, begin: Begin) -> None:
        self._models = list(recordings)
        self._left = [float(count) for count in recordings.values()]  # recordings without a receipt
        self._engines = [0] * len(self._models)
        self._places, self._begin = places, begin
        self._runs: dict[int, tuple[ModelRun, threading.Thread]] = {}
        self._events: SimpleQueue[tuple[int, pa.Table | Exception | None]] = SimpleQueue()  # None: has ended

    def __iter__(self) -> Iterator[tuple[int, pa.Table]]:
        try:
            self._share()
            while self._runs:
                position, event = self._events.get()
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    self._end(position)
                    self._share()
                else:
                    self._left[position] -= len(event)
                    yield self._models[position], event
        finally:
            self._stop()

    def _share(self) -> None:
        """Gives free places to models that wait or run."""
        # What has ended needs none; what runs keeps its engines.
        shares = share_engines(self._left, self._places, self._engines)
        for position, engines in enumerate(shares):
            if engines == self._engines[position]:
                continue
            self._engines[position] = engines
            if position in self._runs:
                self._runs[position][0].grow(engines)
            else:
                self._start(position, engines)

    def _start(self, position: int, engines: int) -> None:
        run = self._begin(self._models[position], engines)
        thread = threading.Thread(target=self._follow, args=(position, run), daemon=True, name=f"model-{position}")
        self._runs[position] = run, thread
        thread.start()

    def _follow(self, position: int, run: ModelRun) -> None:
        try:
            for batch in run.receipts():
                self._events.put((position, batch))
            self._events.put((position, None))
        except Exception as error:
            self._events.put((position, error))

    def _end(self, position: int) -> None:
        _, thread = self._runs.pop(position)
        thread.join()
        self._left[position], self._engines[position] = 0.0, 0

    def _stop(self) -> None:
        for run, _ in self._runs.values():
            run.stop()
        for _, thread in self._runs.values():
            thread.join(STOP_S)
