"""Which datasets run at a time and on how many engines, with stand-ins for them. ``test_models`` has Ray's."""

import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from cluster.nodes import Layout, Node, plan_layout
from cluster.settings import ClusterConfig
from pipelines.model_runs import ModelRuns
from pipelines.work_left import WorkLeft, work_left

READY = datetime(2026, 1, 1, tzinfo=UTC)


def layout_of(engines: int, now: int | None = None) -> Layout:
    """Of nodes with a GPU each, ``now`` of which are there."""
    alive = engines if now is None else now
    nodes = [Node(cpus=4, gpus=1, accelerator="T4", alive=number < alive) for number in range(engines)]
    return plan_layout(nodes, ClusterConfig(address="auto"))


def receipts_of(rows: int, engine_s: float | None, engine: int = 0) -> pa.Table:
    """Those of a block, with which an engine has run for so long; None: all were routed to other models."""
    ready = READY + timedelta(microseconds=engine)
    last = None if engine_s is None else ready + timedelta(seconds=engine_s)
    columns = {"finished_at": [last] * rows, "engine_ready_at": [ready] * rows}
    return pa.table(columns, schema=pa.schema([(name, pa.timestamp("us", tz="UTC")) for name in columns]))


def await_end(position: int) -> None:
    """Returns when the thread of a model has ended."""
    for thread in threading.enumerate():
        if thread.name == f"model-{position}":
            thread.join()


class Scripted:
    """A dataset that commits what it is told to, and the rest when it may have more engines."""

    def __init__(self, part: Layout) -> None:
        self.engines = [part.engines]
        self.engines_now = [part.engines_now]
        self.stopped = False
        self._script: queue.SimpleQueue[int | tuple[int, float] | Exception | None] = queue.SimpleQueue()

    def say(self, *events: int | tuple[int, float] | Exception | None) -> None:
        """Receipts, their engine having run for 1 s or as long as said; an error; or None for the end."""
        for event in events:
            self._script.put(event)

    def receipts(self) -> Iterator[pa.Table]:
        while (event := self._script.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield receipts_of(*event) if isinstance(event, tuple) else receipts_of(event, 1.0)

    def resize(self, part: Layout) -> None:
        self.engines.append(part.engines)
        self.engines_now.append(part.engines_now)
        self.say(5, None)

    def stop(self) -> None:
        self.stopped = True
        self.say(InterruptedError())


class Datasets(dict[int, Scripted]):
    """Those begun, by model, each with what it says at first."""

    def __init__(self, **says: tuple[int | tuple[int, float] | Exception | None, ...]) -> None:
        self._says = says

    def begin(self, model: int, part: Layout) -> Scripted:
        self[model] = Scripted(part)
        self[model].say(*self._says[f"m{model}"])
        return self[model]

    def run(self, rows: dict[int, int], engines: int) -> list[tuple[int, int]]:
        return [(model, len(batch)) for model, batch in ModelRuns(rows, layout_of(engines), self.begin).receipts()]

    @property
    def engines(self) -> dict[int, list[int]]:
        """Of each model, first and after each change."""
        return {model: dataset.engines for model, dataset in self.items()}


def test_places_follow_the_work_and_go_on_to_others() -> None:
    datasets = Datasets(m0=(), m2=(30, None))
    assert datasets.run({0: 10, 2: 30}, 4) == [(2, 30), (0, 5)]
    assert datasets.engines == {0: [1, 4], 2: [3]}


def test_models_without_a_place_wait_and_the_one_with_most_work_is_first() -> None:
    datasets = Datasets(m0=(10, None), m1=(30, None), m2=(20, None))
    assert datasets.run({0: 10, 1: 30, 2: 20}, 1) == [(1, 30), (2, 20), (0, 10)]
    assert datasets.engines == {1: [1], 2: [1], 0: [1]}


def test_one_model_has_all_places() -> None:
    datasets = Datasets(m3=(7, None))
    assert datasets.run({3: 7}, 4) == [(3, 7)]
    assert datasets.engines == {3: [4]}


def test_an_error_of_one_is_raised_and_the_others_are_stopped() -> None:
    datasets = Datasets(m0=(1,), m1=(1, ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        datasets.run({0: 10, 1: 10}, 2)
    assert datasets[0].stopped


def test_one_model_is_told_of_nodes_that_come() -> None:
    datasets = Datasets(m3=(1,))
    runs = ModelRuns({3: 6}, layout_of(1), datasets.begin)
    runs.resize(layout_of(3, now=2))
    assert [len(batch) for _, batch in runs.receipts()] == [1, 5]
    assert (datasets[3].engines, datasets[3].engines_now) == ([1, 3], [1, 2])


def test_places_on_nodes_that_come_go_to_the_model_with_most_work_left() -> None:
    datasets = Datasets(m0=(1,), m1=(1,))
    runs = ModelRuns({0: 10, 1: 30}, layout_of(2), datasets.begin)
    receipts = runs.receipts()
    next(receipts), next(receipts)
    runs.resize(layout_of(3))
    assert [(model, len(batch)) for model, batch in receipts] == [(1, 5), (0, 5)]
    assert datasets.engines == {0: [1, 3], 1: [1, 2]}


def test_work_left_is_counted_by_what_a_row_has_taken() -> None:
    datasets = Datasets(m0=((10, 10.0),), m1=((10, 1000.0),))
    runs = ModelRuns({0: 40, 1: 20}, layout_of(2), datasets.begin)
    receipts = runs.receipts()
    next(receipts), next(receipts)
    runs.resize(layout_of(3))
    assert next(receipts)[0] == 1
    assert datasets[1].engines == [1, 2]
    receipts.close()


def test_a_model_that_waits_starts_on_a_node_that_comes() -> None:
    datasets = Datasets(m0=(10, None), m1=(1,))
    runs = ModelRuns({0: 10, 1: 30}, layout_of(1), datasets.begin)
    receipts = runs.receipts()
    next(receipts)
    runs.resize(layout_of(2))
    assert [(model, len(batch)) for model, batch in receipts] == [(0, 10), (1, 5)]
    assert datasets.engines == {1: [1, 2], 0: [1]}


def test_places_of_nodes_that_have_gone_are_given_to_nobody() -> None:
    datasets = Datasets(m0=(1,), m1=(1,), m2=(10, None))
    runs = ModelRuns({0: 40, 1: 30, 2: 10}, layout_of(2), datasets.begin)
    receipts = runs.receipts()
    next(receipts), next(receipts)
    runs.resize(layout_of(1))
    datasets[0].say(39, None)
    assert next(receipts)[0] == 0
    await_end(0)
    datasets[1].say(2)  # of the one engine that there is, which Ray may have started again on the other's node
    assert next(receipts)[0] == 1
    assert datasets.keys() == {0, 1}
    datasets[1].say(27, None)
    assert [(model, len(batch)) for model, batch in receipts] == [(1, 27), (2, 10)]
    assert datasets.engines == {0: [1], 1: [1], 2: [1]}


def test_nodes_to_come_are_shared_and_a_model_begins_with_the_room_that_there_is() -> None:
    """An engine of each model is asked for at once, so that the autoscaler adds nodes for both."""
    datasets = Datasets(m0=(1,), m1=(1,))
    runs = ModelRuns({0: 10, 1: 30}, layout_of(8, now=1), datasets.begin)
    receipts = runs.receipts()
    next(receipts), next(receipts)
    assert datasets.engines == {0: [2], 1: [6]}
    assert (datasets[0].engines_now, datasets[1].engines_now) == ([1], [1])
    runs.resize(layout_of(8, now=4))
    assert next(receipts)[0] == 1
    assert (datasets[0].engines_now, datasets[1].engines_now) == ([1], [1, 3])
    receipts.close()


@pytest.mark.parametrize(
    ("models", "work"),
    [
        ([(10, []), (30, [])], [10, 30]),  # rows alone
        ([(10, [receipts_of(5, 10)]), (30, [receipts_of(10, 5)])], [5 * 2, 20 * 0.5]),
        ([(10, [receipts_of(5, 10)]), (30, [])], [5 * 2, 30 * 2]),  # as the other
        ([(10, [receipts_of(5, 10)]), (30, [receipts_of(10, 40)]), (2, [])], [5 * 2, 20 * 4, 2 * 3]),  # their mean
        ([(30, [receipts_of(5, 10, engine=1), receipts_of(5, 20, engine=2)])], [20 * 3]),  # engines are summed
        ([(30, [receipts_of(5, 10), receipts_of(5, 20)])], [20 * 2]),  # of one, the last counts
        ([(10, [receipts_of(5, None)]), (30, [receipts_of(10, 5)])], [5 * 0.5, 20 * 0.5]),  # nothing was transcribed
        ([(10, [receipts_of(12, 6)])], [0]),  # Ray has run a block twice
    ],
)
def test_work_left_is_rows_times_the_time_of_an_engine_for_each(
    models: list[tuple[int, list[pa.Table]]], work: list[float]
) -> None:
    measured = []
    for rows, batches in models:
        measured.append(WorkLeft(rows))
        for batch in batches:
            measured[-1].add(batch)
    assert work_left(measured) == pytest.approx(work)
