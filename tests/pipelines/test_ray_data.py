"""The driver of a large job stays small."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.data import DataContext

from pipelines import ray_data
from pipelines.ray_data import configure_ray_data

BLOCKS = 200
WAITING = 10
AT_WORK = 30  # more than tasks can be under way at once on the six CPUs of ``ray_here``


class Gauge:
    """How many blocks are made and not yet used."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def add(self, change: int) -> None:
        self.now += change
        self.most = max(self.most, self.now)

    def most_waiting(self) -> int:
        return self.most


class Use:
    def __init__(self, gauge: Any) -> None:
        self._gauge = gauge

    def __call__(self, block: pa.Table) -> pa.Table:
        ray.get(self._gauge.add.remote(-1))
        return block


@pytest.fixture
def told(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The context as the job has it, and few blocks many."""
    with DataContext.current(DataContext.get_current().copy()):
        monkeypatch.setattr(ray_data, "MOST_BLOCKS_WAITING", WAITING)
        configure_ray_data()
        yield


def test_an_operator_does_not_run_far_ahead_of_the_next(told: None) -> None:
    gauge = ray.remote(Gauge).options(num_cpus=0).remote()

    def make(block: pa.Table) -> pa.Table:
        ray.get(gauge.add.remote(1))
        return block

    made = ray.data.range(BLOCKS, override_num_blocks=BLOCKS).map_batches(make, batch_size=None, batch_format="pyarrow")
    # An actor takes seconds to start, in which all blocks would be made.
    used = made.map_batches(
        Use,
        fn_constructor_args=(gauge,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5,
    )
    assert sum(len(batch["id"]) for batch in used.iter_batches(batch_size=None)) == BLOCKS
    assert ray.get(gauge.most_waiting.remote()) <= WAITING + AT_WORK


def test_the_statistics_of_blocks_are_forgotten(told: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    class Look(ray_data.DropBlockStats):
        def on_execution_step(self, executor: Any) -> None:
            super().on_execution_step(executor)
            kept.extend(len(blocks) for op in executor._topology for blocks in op.get_stats().values())

    DataContext.get_current().custom_execution_callback_classes = [Look]
    numbers = ray.data.range(BLOCKS, override_num_blocks=BLOCKS)
    assert sum(len(batch["id"]) for batch in numbers.iter_batches(batch_size=None)) == BLOCKS
    assert kept
    assert max(kept) == 0
