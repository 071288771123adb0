"""The driver's memory does not grow with the number of blocks, and the private parts of Ray that this needs exist."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.data import DataContext

from cluster import ray_internals
from cluster.nodes import Layout, Node, plan_layout
from cluster.settings import ClusterConfig
from pipelines import graph
from pipelines.output import Output
from pipelines.ray_data import configure_ray_data
from speech.errors import RayscribeError
from storage.filesystem import Storage
from tests.pipelines.jobs import job_of, start_scripted

BLOCKS = 200
MAX_QUEUED = 10
IN_FLIGHT = 30  # more than the tasks that run at once on the six CPUs of ``ray_here``


class Gauge:
    """Counts the blocks that are made and not yet consumed."""

    def __init__(self) -> None:
        self.now = self.max = 0

    def add(self, change: int) -> None:
        self.now += change
        self.max = max(self.max, self.now)

    def max_queued(self) -> int:
        return self.max


class Consume:
    def __init__(self, gauge: Any) -> None:
        self._gauge = gauge

    def __call__(self, block: pa.Table) -> pa.Table:
        ray.get(self._gauge.add.remote(-1))
        return block


@pytest.fixture
def configured(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The job's context, with a limit of MAX_QUEUED blocks."""
    with DataContext.current(DataContext.get_current().copy()):
        monkeypatch.setattr(ray_internals, "MAX_QUEUED_BLOCKS", MAX_QUEUED)
        configure_ray_data()
        yield


def test_an_operator_does_not_run_far_ahead_of_the_next(configured: None) -> None:
    gauge = ray.remote(Gauge).options(num_cpus=0).remote()

    def make(block: pa.Table) -> pa.Table:
        ray.get(gauge.add.remote(1))
        return block

    made = ray.data.range(BLOCKS, override_num_blocks=BLOCKS).map_batches(make, batch_size=None, batch_format="pyarrow")
    # An actor takes seconds to start, in which all blocks would be made.
    consumed = made.map_batches(
        Consume,
        fn_constructor_args=(gauge,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5,
    )
    assert sum(len(batch["id"]) for batch in consumed.iter_batches(batch_size=None)) == BLOCKS
    assert ray.get(gauge.max_queued.remote()) <= MAX_QUEUED + IN_FLIGHT


def test_block_statistics_are_dropped(configured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    class Record(ray_internals.DropBlockStats):
        def on_execution_step(self, executor: Any) -> None:
            super().on_execution_step(executor)
            kept.extend(len(blocks) for op in executor._topology for blocks in op.get_stats().values())

    DataContext.get_current().custom_execution_callback_classes = [Record]
    numbers = ray.data.range(BLOCKS, override_num_blocks=BLOCKS)
    assert sum(len(batch["id"]) for batch in numbers.iter_batches(batch_size=None)) == BLOCKS
    assert kept
    assert max(kept) == 0


class Operators:
    """Two operators, the first of which has an output that the second takes."""

    def __init__(self) -> None:
        self.last = SimpleNamespace(output_dependencies=[])
        self.first = SimpleNamespace(output_dependencies=[self.last])


def test_the_last_operator_is_not_held_back_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    operators: Any = Operators()
    manager: Any = SimpleNamespace(_op_resource_allocator=SimpleNamespace(can_submit_new_task=lambda operator: False))
    policy = ray_internals.BudgetBeforeLast(DataContext.get_current(), {}, manager)
    assert not policy.can_add_input(operators.first)
    assert policy.can_add_input(operators.last)


WAIT_S = 60.0


@pytest.mark.parametrize(
    ("lost", "active", "room", "waited_s", "ends"),
    [
        (2, 2, False, WAIT_S, True),
        (2, 2, False, WAIT_S - 1, False),
        (2, 2, True, WAIT_S, False),  # it starts again, which may take minutes
        (2, 3, False, WAIT_S, False),  # others are at work
        (0, 0, False, WAIT_S, False),
    ],
)
def test_a_dataset_ends_when_all_its_work_is_on_lost_actors(
    lost: int, active: int, room: bool, waited_s: float, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(ray_internals.time, "monotonic", lambda: now)
    watch = ray_internals.StageWatch(WAIT_S, lambda: room)
    watch._loads = {"Transcribe": ray_internals.StageLoad(0, 2, active, 4, lost)}
    watch._check_lost(active)
    now += waited_s
    with pytest.raises(ray_internals.ActorsLost) if ends else contextlib.nullcontext():
        watch._check_lost(active)


def test_a_cluster_that_cannot_be_asked_for_room_ends_no_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cluster: ClusterConfig) -> Layout:
        raise ConnectionError("the head is gone")

    monkeypatch.setattr(graph, "cluster_layout", fail)
    job = job_of("m.jsonl", tmp_path, address="auto", lost_wait_s=0)
    layout = plan_layout([Node(cpus=4)], job.cluster)
    dataset = graph.ModelDataset(job, 0, start_scripted, Storage(), Output(job.output, Storage()), [], 0, layout)
    dataset._watch._loads = {"Transcribe": ray_internals.StageLoad(0, 2, 2, 4, lost=2)}
    dataset._watch._check_lost(active=2)  # raises neither the error nor ActorsLost


def test_this_ray_has_the_internals_that_are_used() -> None:
    ray_internals.check()


def test_missing_internals_are_named_with_the_supported_ray_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray_internals.OpState, "total_enqueued_output_blocks")
    monkeypatch.setattr(ray, "init", lambda address=None: None)
    with pytest.raises(RayscribeError) as unsupported:
        ray_internals.check()
    assert unsupported.value.code == "unsupported_ray"
    for part in (
        "OpState.total_enqueued_output_blocks",
        "ray.init(_metrics_export_port)",
        ray_internals.MADE_FOR,
        ray.__version__,
    ):
        assert part in unsupported.value.message
