"""Which datasets run at a time and on how many engines, with stand-ins for them. ``test_models`` has Ray's."""

import queue
from collections.abc import Iterator

import pyarrow as pa
import pytest

from pipelines.model_runs import run_models


class Scripted:
    """A dataset that commits what it is told to, and the rest when it may grow."""

    def __init__(self, engines: int) -> None:
        self.engines = [engines]
        self.stopped = False
        self._script: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()

    def say(self, *events: int | Exception | None) -> None:
        """Receipts, an error, or None for the end."""
        for event in events:
            self._script.put(event)

    def receipts(self) -> Iterator[pa.Table]:
        while (event := self._script.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield pa.table({"number": [0] * event})

    def grow(self, engines: int) -> None:
        self.engines.append(engines)
        self.say(5, None)

    def stop(self) -> None:
        self.stopped = True
        self.say(InterruptedError())


class Datasets(dict[int, Scripted]):
    """Those begun, by model, each with what it says at first."""

    def __init__(self, **says: tuple[int | Exception | None, ...]) -> None:
        self._says = says

    def begin(self, model: int, engines: int) -> Scripted:
        self[model] = Scripted(engines)
        self[model].say(*self._says[f"m{model}"])
        return self[model]

    def run(self, recordings: dict[int, int], places: int) -> list[tuple[int, int]]:
        return [(model, len(batch)) for model, batch in run_models(recordings, places, self.begin)]


def test_places_follow_the_work_and_go_on_to_others() -> None:
    datasets = Datasets(m0=(), m2=(30, None))
    assert datasets.run({0: 10, 2: 30}, 4) == [(2, 30), (0, 5)]
    assert {model: dataset.engines for model, dataset in datasets.items()} == {0: [1, 4], 2: [3]}


def test_models_without_a_place_wait_and_the_one_with_most_work_is_first() -> None:
    datasets = Datasets(m0=(10, None), m1=(30, None), m2=(20, None))
    assert datasets.run({0: 10, 1: 30, 2: 20}, 1) == [(1, 30), (2, 20), (0, 10)]
    assert [dataset.engines for dataset in datasets.values()] == [[1], [1], [1]]


def test_one_model_has_all_places() -> None:
    datasets = Datasets(m3=(7, None))
    assert datasets.run({3: 7}, 4) == [(3, 7)]
    assert datasets[3].engines == [4]


def test_an_error_of_one_is_raised_and_the_others_are_stopped() -> None:
    datasets = Datasets(m0=(1,), m1=(1, ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        datasets.run({0: 10, 1: 10}, 2)
    assert datasets[0].stopped
