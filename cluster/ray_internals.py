"""All private parts of Ray that Rayscribe uses, in one file, and the check that this Ray has them.

    backpressure policies  limit the blocks that wait between two operators of Ray Data; never hold back the last
    execution callbacks    drop the statistics that Ray Data keeps of every block; tell what each stage is doing
    actor pool             its minimum and maximum, which are raised while a dataset is executed; which actors are lost
    _metrics_export_port   the port at which a Ray that is started here exports its metrics
    _worker_logs_enabled   whether the driver prints messages of Ray's processes
    ENABLE_RAY_CLUSTER     whether a node's address may be other than loopback
    map_batches_internal   blocks as batches on GPUs, and Ray's own scheduling of actors
    get_cluster_config     the kinds of nodes that the autoscaler may add
    drain_node             tells Ray that a node will be taken away; get_draining_nodes: which will

Import it late: it imports Ray Data, which takes half a second. ``cluster.session.connect_ray`` calls ``check`` before
Ray starts, so that a Ray without one of these parts is named at once and not as an AttributeError within a run.
"""

import inspect
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import CodeType
from typing import TYPE_CHECKING, Any

import ray

from speech.errors import RayscribeError

MADE_FOR = "2.60"


def _unsupported(missing: str) -> RayscribeError:
    return RayscribeError(
        "unsupported_ray",
        f"Ray {ray.__version__} lacks internals that Rayscribe uses ({missing}); this version of Rayscribe is made for "
        f"Ray {MADE_FOR}: pip install 'ray[data,serve]=={MADE_FOR}.*'",
    )


try:
    from ray._private import ray_constants
    from ray._private import state as ray_state
    from ray._private import worker as ray_worker
    from ray._raylet import GcsClient, InnerGcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2
    from ray.data import ActorPoolStrategy, DataContext, Dataset
    from ray.data._internal.actor_autoscaler import AutoscalingActorPool
    from ray.data._internal.actor_autoscaler.autoscaling_actor_pool import AutoscalingActorConfig
    from ray.data._internal.execution.backpressure_policy import (
        ENABLED_BACKPRESSURE_POLICIES,
        ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
        BackpressurePolicy,
        ResourceBudgetBackpressurePolicy,
    )
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.data._internal.execution.interfaces import PhysicalOperator
    from ray.data._internal.execution.operators.actor_pool_map_operator import _ActorPool, _ActorState
    from ray.data._internal.execution.streaming_executor import StreamingExecutor
    from ray.data._internal.execution.streaming_executor_state import OpState
except ImportError as error:
    raise _unsupported(str(error)) from error

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor_state import Topology

# The reason of a drain that Ray does not refuse, as it does another while the node has work.
PREEMPTION = "DRAIN_NODE_REASON_PREEMPTION"
# Between two operators. Each costs the driver 10 kB.
MAX_QUEUED_BLOCKS = 1_000

# What is used of each class; an instance attribute is looked for in the method that sets it.
_METHODS = {
    Dataset: ("map_batches_internal",),
    BackpressurePolicy: ("can_add_input", "max_task_output_bytes_to_read"),
    ExecutionCallback: ("on_execution_step",),
    OpState: ("total_enqueued_input_blocks", "total_enqueued_output_blocks"),
    PhysicalOperator: ("get_stats", "output_dependencies", "get_autoscaling_actor_pools", "name", "num_active_tasks"),
    AutoscalingActorPool: ("num_running_actors", "num_tasks_in_flight", "max_actor_concurrency", "max_size"),
}
_INSTANCE_ATTRIBUTES = (
    (BackpressurePolicy.__init__, "_topology"),
    (StreamingExecutor.__init__, "_topology"),
    (AutoscalingActorPool.__init__, "_config"),
    (_ActorPool.__init__, "_running_actors"),
)
_FIELDS: dict[type, tuple[str, ...]] = {
    AutoscalingActorConfig: ("min_size", "initial_size", "max_size"),
    _ActorState: ("num_tasks_in_flight", "is_restarting"),
}
_CONTEXT = ("custom_execution_callback_classes", "set_config")


def check() -> None:
    """Returns if this Ray has all that is used here.

    Raises:
        RayscribeError: ``unsupported_ray``, naming what is missing and the Ray version that it was written for.
    """
    if missing := list(_missing()):
        raise _unsupported(", ".join(missing))


def _missing() -> Iterator[str]:
    for owner, methods in _METHODS.items():
        yield from (f"{owner.__name__}.{name}" for name in methods if not hasattr(owner, name))
    for method, name in _INSTANCE_ATTRIBUTES:
        if name not in method.__code__.co_names:
            yield f"{method.__qualname__.removesuffix('.__init__')}.{name}"
    for kind, names in _FIELDS.items():
        yield from (f"{kind.__name__}.{name}" for name in names if name not in kind.__annotations__)
    context = DataContext.get_current()
    yield from (f"DataContext.{name}" for name in _CONTEXT if not hasattr(context, name))
    for name in ("ENABLE_RAY_CLUSTER", "ENABLE_RAY_CLUSTERS_ENV_VAR"):
        if not hasattr(ray_constants, name):
            yield f"ray_constants.{name}"
    if "_worker_logs_enabled" not in ray_worker.print_worker_logs.__code__.co_names:
        yield "worker._worker_logs_enabled"
    for name in ("get_cluster_config", "get_draining_nodes"):
        if not hasattr(ray_state.state, name):
            yield f"state.{name}"
    if not hasattr(InnerGcsClient, "drain_node"):  # to which GcsClient delegates
        yield "GcsClient.drain_node"
    if PREEMPTION not in dict(autoscaler_pb2.DrainNodeReason.items()):
        yield PREEMPTION
    init: CodeType = inspect.unwrap(ray.init).__code__
    if "_metrics_export_port" not in init.co_consts:
        yield "ray.init(_metrics_export_port)"


def metrics_port_argument(port: int) -> dict[str, int]:
    """The argument of ``ray.init`` that sets the port at which Ray exports its metrics."""
    return {"_metrics_export_port": port}


def node_groups() -> list[tuple[dict[str, float], int]]:
    """The resources of each kind of node that the autoscaler may add, and how many it may have; none without one.

    Ray's autoscaler (version 2, as KubeRay's) publishes them for Ray Data's.
    """
    config = ray_state.state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return [(dict(group.resources), max(0, group.max_count)) for group in groups]


def draining_nodes() -> set[str]:
    """The ids of the nodes that will be taken away: nothing more is scheduled on them."""
    return {*ray_state.state.get_draining_nodes()}


def on_draining_node() -> bool:
    """Whether this process is on one of ``draining_nodes``."""
    return ray.get_runtime_context().get_node_id() in draining_nodes()


def drain_this_node(left_s: float) -> None:
    """Tells Ray that this process's node will be taken away in so many seconds. Ray does not end it then."""
    context = ray.get_runtime_context()
    reason = autoscaler_pb2.DrainNodeReason.Value(PREEMPTION)
    ends_at_ms = int(1000 * (time.time() + left_s))
    GcsClient(address=context.gcs_address).drain_node(context.get_node_id(), reason, "spot notice", ends_at_ms)


def map_blocks(
    dataset: Dataset, stage: type, arguments: tuple[Any, ...], pool: ActorPoolStrategy, **resources: Any
) -> Dataset:
    """``Dataset.map_batches`` by actors, whose batches are whole blocks.

    The public form wants a number of rows where there are GPUs, by which it would join blocks; Ray Data's own
    ``map_groups`` avoids it in this way. Nor has it a way to Ray's own scheduling strategy. Ray Data's, which spreads
    actors, ignores ``fallback_strategy``: an actor waits for a node of its label selector.

    Args:
        dataset: of Arrow blocks.
        stage: a class whose instances are called with a block, as a table.
        arguments: of its constructor.
        pool: of actors.
        resources: of each actor, as ``ray.remote`` names them.
    """
    return dataset.map_batches_internal(
        stage,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        compute=pool,
        scheduling_strategy="DEFAULT",
        **resources,
    )


def hide_messages() -> None:
    """Keeps messages of Ray's processes, as that a worker has died, from this process's stdout.

    They begin with "(raylet)", and are printed in spite of ``log_to_driver=False``. Ray's logs have them.
    """
    ray_worker._worker_logs_enabled = False


def use_loopback() -> None:
    """Makes the Ray that this process starts use 127.0.0.1 as its node's address, so that its metrics listen there.

    It is Ray's own mode for Windows and macOS, where it avoids the firewall's dialogs (ray#18730). On Linux an address
    of 127.0.0.1 given to ``ray.init`` is replaced by that of the network interface.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for Ray's own processes
    ray_constants.ENABLE_RAY_CLUSTER = False


class BudgetBeforeLast(ResourceBudgetBackpressurePolicy):
    """Ray Data's limits by the memory of the object store, for all operators but the last.

    An operator for whose least number of actors the cluster is too small, as it is when a node is lost, has no memory
    of its own. The blocks that wait for it take the rest, and those that it was given on the lost node count as work:
    it got no more, and the engines that were left did nothing until another node came. Its own output is small.
    """

    def can_add_input(self, op: PhysicalOperator) -> bool:
        return not op.output_dependencies or super().can_add_input(op)


class LimitQueuedBlocks(BackpressurePolicy):
    """Stops an operator while MAX_QUEUED_BLOCKS of its blocks are queued for the next.

    Ray Data's own policies count bytes, and the blocks of a work list have few: all 31,000 of a million
    recordings were made at once, and the driver grew by 300 MB.
    """

    _topology: "Topology"

    def can_add_input(self, op: PhysicalOperator) -> bool:
        return not self._is_full(op)

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        return 0 if self._is_full(op) else None

    def _is_full(self, op: PhysicalOperator) -> bool:
        queued = self._topology[op].total_enqueued_output_blocks()
        queued += sum(self._topology[after].total_enqueued_input_blocks() for after in op.output_dependencies)
        return queued >= MAX_QUEUED_BLOCKS


class ActorsLost(Exception):  # noqa: N818 - not a failure: what they had is for the next dataset
    """A dataset has ended because all that is left of it waits for actors for which no node has room."""


@dataclass(frozen=True)
class StageLoad:
    """What an operator of actors is doing.

    Attributes:
        queued: blocks that wait for it.
        actors: that are ready.
        in_flight: blocks that were given to them.
        calls_per_actor: blocks that one of them works on at once.
        lost: of those in flight, blocks of actors whose process has ended and that are not ready again.
    """

    queued: int
    actors: int
    in_flight: int
    calls_per_actor: int
    lost: int = 0

    @property
    def busy(self) -> bool:
        """Whether all its actors have all the work that they take at once."""
        return self.actors > 0 and self.in_flight >= self.actors * self.calls_per_actor


class StageWatch:
    """Knows what the stages of one dataset are doing, and sets how many actors each may have, while it is executed.

    An actor keeps the blocks that it was given when its node is lost, and Ray starts it again where there is room. If
    there is none before the others have done all else, and these blocks leave no memory for what comes before them,
    nothing goes on. The dataset is then ended by ``ActorsLost``.

    Args:
        lost_wait_s: for so long nothing else may be in flight.
        has_room: whether there is room for the actors that are lost. Asked in the dataset's thread.
    """

    def __init__(self, lost_wait_s: float, has_room: Callable[[], bool]) -> None:
        self._lost_wait_s, self._has_room = lost_wait_s, has_room
        self._lost_since: float | None = None
        self._loads: dict[str, StageLoad] = {}  # by the name of the stage's class
        self._limits: dict[str, tuple[int, int]] = {}
        self._stopped = False

    def load(self, stage: type) -> StageLoad:
        """What the actors of a stage of ``map_blocks`` were doing a moment ago."""
        return self._loads.get(stage.__name__, StageLoad(0, 0, 0, 1))

    def limit(self, stage: type, least: int, most: int) -> None:
        """Raises the numbers of actors between which a stage is, from the next step on; it never lowers them.

        Between them a stage grows when it is busy, and within the part of the cluster that Ray Data lets its dataset
        have: an equal one for each dataset, rounded down on each node. Of a node's one GPU two datasets have none.
        """
        self._limits[stage.__name__] = least, most

    def stop(self) -> None:
        """Ends the dataset at its next step, in whichever thread it is executed; its reader gets an error."""
        self._stopped = True

    def attach(self, dataset: Dataset) -> None:
        """Makes this the watch of a dataset that has not been executed, and of what is made from it."""
        watch = self

        class Callback(ExecutionCallback):
            def on_execution_step(self, executor: StreamingExecutor) -> None:
                watch._step(executor)

        dataset.context.custom_execution_callback_classes = [DropBlockStats, Callback]

    def _step(self, executor: StreamingExecutor) -> None:
        if self._stopped:
            raise InterruptedError("the run has ended")
        for operator, state in (executor._topology or {}).items():
            for pool in operator.get_autoscaling_actor_pools():
                stage = operator.name.removeprefix("MapBatches(").removesuffix(")")
                if limits := self._limits.get(stage):
                    pool._config = _raised(pool._config, *limits)
                self._loads[stage] = StageLoad(
                    state.total_enqueued_input_blocks(),
                    pool.num_running_actors(),
                    pool.num_tasks_in_flight(),
                    pool.max_actor_concurrency(),
                    sum(actor.num_tasks_in_flight for actor in pool._running_actors.values() if actor.is_restarting),
                )
        self._check_lost(sum(operator.num_active_tasks() for operator in executor._topology or ()))

    def _check_lost(self, active: int) -> None:
        """Raises ActorsLost if all work in flight waits for actors for which there is no room, and has so for long."""
        lost = sum(load.lost for load in self._loads.values())
        if not lost or lost < active:
            self._lost_since = None
            return
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        if now - self._lost_since < self._lost_wait_s:
            return
        if self._has_room():
            self._lost_since = now
            return
        raise ActorsLost(f"{lost} blocks wait for actors that have no node")


def _raised(config: AutoscalingActorConfig, least: int, most: int) -> AutoscalingActorConfig:
    """The configuration of an actor pool, with no lower numbers than these."""
    if least <= config.min_size and most <= config.max_size:
        return config
    least, most = max(least, config.min_size), max(most, config.max_size)
    return replace(config, min_size=least, initial_size=max(least, config.initial_size), max_size=most)


class DropBlockStats(ExecutionCallback):
    """Drops the kilobyte of statistics that Ray Data keeps of every block that an operator has made.

    They are for a table (``Dataset.stats``) that is not printed, and came to 100 MB in a million recordings.
    """

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        for operator in executor._topology or ():
            for block_stats in operator.get_stats().values():
                block_stats.clear()  # the operator's own list


def set_policies(context: DataContext) -> None:
    """Makes the driver's memory independent of the number of blocks, and never holds back the last operator."""
    context.custom_execution_callback_classes = [DropBlockStats]
    others = (each for each in ENABLED_BACKPRESSURE_POLICIES if each is not ResourceBudgetBackpressurePolicy)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*others, BudgetBeforeLast, LimitQueuedBlocks])
