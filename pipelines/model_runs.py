"""The datasets of a run's models: which run at a time, on how many engines, and their receipts as one stream.

Each model has a work list and a dataset of its own. Where there are fewer places for engines than models, the models
with most work are first. The places of one that has ended, and those on nodes that come later, go to the models that
wait and to those with most work left.

A place that a dataset has is not taken from it. When a node goes, Ray starts its engines again where there is room;
until then they wait, and nobody is given a place. That may be when a node comes, when another model has ended, or when
an engine of the same model finds no more work; what they had may be left to another pass before
(``pipelines.next_pass``). The Listeners of a model that begins later wait for cores that idle ones of others leave.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from queue import SimpleQueue
from typing import Protocol

import pyarrow as pa

from cluster.nodes import Layout, share_engines
from pipelines.work_left import WorkLeft, work_left

# For a dataset to end after the run has failed, before the run goes on to do so.
STOP_S = 30.0


class ModelRun(Protocol):
    """One model's dataset. Its methods are called from different threads."""

    def receipts(self) -> Iterator[pa.Table]:
        """Executes it; yields what it has committed."""

    def resize(self, layout: Layout) -> None:
        """Lets it have as many actors as this layout has."""

    def stop(self) -> None:
        """Ends it."""


Begin = Callable[[int, Layout], ModelRun]  # (model, its part of the layout) → its run


class ModelRuns:
    """The datasets of a run's models.

    One alone is executed in the thread of ``receipts``, which a signal interrupts; several each in a thread of its own.

    Args:
        rows: of each model's work list.
        layout: of all models together.
        begin: makes the run of a model. Called at once for one model, else from the thread of ``receipts``.
    """

    def __init__(self, rows: Mapping[int, int], layout: Layout, begin: Begin) -> None:
        self._models = list(rows)
        self._layout, self._begin = layout, begin
        self._only = begin(self._models[0], layout) if len(rows) == 1 else None
        self._work = [WorkLeft(count) for count in rows.values()]
        # Engines of each model: at most, on nodes to come too; and those that nodes have room for now. Of these a model
        # that runs has one in any case, for which Ray's autoscaler may add a node.
        self._most, self._now = [0] * len(rows), [0] * len(rows)
        self._runs: dict[int, tuple[ModelRun, threading.Thread]] = {}
        # From the datasets' threads, by position: receipts, or None for the end. From that of ``resize``: the layout.
        self._events: SimpleQueue[tuple[int, pa.Table | Exception | None] | Layout] = SimpleQueue()

    def resize(self, layout: Layout) -> None:
        """Nodes have come or gone. Called from any thread."""
        if self._only:
            self._only.resize(layout)
        else:
            self._events.put(layout)

    def receipts(self) -> Generator[tuple[int, pa.Table], None, None]:
        """Runs the datasets and yields (model, receipts).

        Raises:
            Exception: whatever a dataset has raised; the others are stopped.
        """
        if self._only:
            yield from ((self._models[0], batch) for batch in self._only.receipts())
            return
        try:
            self._share()
            while self._runs:
                event = self._events.get()
                if isinstance(event, Layout):
                    self._layout = event
                    self._share()
                    continue
                position, batch = event
                if isinstance(batch, Exception):
                    raise batch
                if batch is None:
                    self._end(position)
                    self._share()
                else:
                    self._work[position].add(batch)
                    yield self._models[position], batch
        finally:
            self._stop()

    def _share(self) -> None:
        """Gives the places that nobody has to models that wait or run."""
        before = list(zip(self._most, self._now, strict=True))
        work = work_left(self._work)
        self._most = share_engines(work, self._layout.engines, self._most)
        held = [max(now, min(1, most)) for most, now in zip(self._most, self._now, strict=True)]
        self._now = share_engines(work, self._layout.engines_now, held, self._most)
        for position, places in enumerate(zip(self._most, self._now, strict=True)):
            if places == before[position]:
                continue
            part = self._layout.share(*places)
            if position in self._runs:
                self._runs[position][0].resize(part)
            else:
                self._start(position, part)

    def _start(self, position: int, part: Layout) -> None:
        run = self._begin(self._models[position], part)
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
        self._work[position].end()
        self._most[position] = self._now[position] = 0

    def _stop(self) -> None:
        for run, _ in self._runs.values():
            run.stop()
        for _, thread in self._runs.values():
            thread.join(STOP_S)
