"""The layout of actors over nodes: where Listeners and engines run, how many, and on what of each node.

Engines run where the GPUs are, or on the CPUs where there are none. Listeners run on nodes without engines first, so
that expensive nodes do not decode audio, and on the spare cores of engine nodes where the others do not suffice.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.gpus import MEMORY_GIB, fit_engine
from cluster.settings import ClusterConfig
from speech.engines.base import EngineConfig

# Ray Data's own tasks (repartition) need CPU slots beside the actors. On a machine of few cores these are only
# logical: the tasks are short, and without free slots the dataset would deadlock.
SPARE_SLOTS = 4
# An engine on a GPU keeps about this many cores busy with features, scheduling and detokenizing.
CORES_PER_GPU_ENGINE = 2
# Listeners that one engine can use at most, beyond which cores of engine nodes are not needed. A Listener's core hears
# RTFx 360 (bench.listener); eight supply an engine of RTFx 2,900.
LISTENERS_PER_GPU_ENGINE = 8
LISTENERS_PER_CPU_ENGINE = 1
# Without a GPU the engine is the bottleneck; a quarter of a node's cores supplies it.
LISTENER_SHARE = 0.25
# For a recording in decoding: an hour of two channels at 16 kHz is 0.2 GiB as int16 and twice that as float32.
LISTENER_GIB = 1.0
# An engine on a CPU: Python, torch and vLLM alone are two.
CPU_ENGINE_GIB = 4.0

# Labels that Ray sets itself.
ACCELERATOR_LABEL, NODE_ID_LABEL = "ray.io/accelerator-type", "ray.io/node-id"
GIB = 1 << 30


@dataclass(frozen=True)
class Node:
    """What one node has for our actors.

    Attributes:
        cpus: cores to compute on.
        slots: CPUs as Ray counts them; None: as many as ``cpus``. A machine of its own has more (``local_slots``).
        gpus: as Ray counts them.
        accelerator: the kind of its GPUs, as Ray names it: "H100".
        gpu_memory_gib: of one GPU, in GiB, where it is known otherwise than by the kind.
        memory_gib: for actors, in GiB; 0: not known.
        labels, resources: Ray's labels and custom resources.
        head: whether it is the head of the cluster.
        alive: False for a node that the autoscaler may still add.
    """

    cpus: float
    slots: float | None = None
    gpus: float = 0.0
    accelerator: str = ""
    gpu_memory_gib: float | None = None
    memory_gib: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    head: bool = False
    alive: bool = True

    @property
    def gpu_gib(self) -> float | None:
        """Memory of one of its GPUs, in GiB; None if it is not known."""
        return self.gpu_memory_gib or MEMORY_GIB.get(self.accelerator)

    @property
    def ray_slots(self) -> float:
        return self.cpus if self.slots is None else self.slots


@dataclass(frozen=True)
class Share:
    """The actors that one node has room for."""

    node: Node
    listeners: int
    engines: int


@dataclass(frozen=True)
class Layout:
    """The actors of a job or of an endpoint, their resources, and the nodes that have room for them.

    Attributes:
        listeners, engines: at most, over all nodes, those to come included.
        engines_now: of them, those that nodes have room for now; one where none has.
        cpus_per_listener, cpus_per_engine, gpus_per_engine: as Ray counts them.
        engine_resources: custom resources of each engine.
        threads_per_engine: of an engine on CPUs; None on GPUs.
        listener_labels: Ray's label selector of nodes without engines; empty: any node.
        listeners_anywhere: whether Listeners may run elsewhere when nodes of that selector are full.
        grows: whether nodes that come later are used too, as far as the user has set no number.
        alone: whether Ray has no room for a second engine on a node: on CPUs, nodes that come later may then be planned
            for, and the numbers of actors be raised.
    """

    shares: tuple[Share, ...]
    listeners: int
    engines: int
    engines_now: int
    cpus_per_listener: float
    cpus_per_engine: float
    gpus_per_engine: float
    engine_resources: Mapping[str, float]
    threads_per_engine: int | None
    listener_labels: Mapping[str, str]
    listeners_anywhere: bool
    grows: bool = False
    alone: bool = False

    def share(self, engines: int, engines_now: int) -> "Layout":
        """The part that one of several models has: so many of the engines, and as many of the Listeners.

        Where it has less than one Listener, that takes less of a CPU: together they take no more than the layout's.
        What comes later is shared too, so that no part grows by itself.
        """
        part = self.listeners * engines / self.engines
        cpus = math.floor(1e4 * min(1.0, part) * self.cpus_per_listener) / 1e4  # Ray counts in steps of 1e-4
        return replace(
            self,
            engines=engines,
            engines_now=engines_now,
            listeners=max(1, _whole(part)),
            cpus_per_listener=cpus,
            grows=False,
        )

    def resized(self, other: "Layout") -> "Layout":
        """These actors, as many as ``other`` has."""
        return replace(self, listeners=other.listeners, engines=other.engines, engines_now=other.engines_now)

    @property
    def engines_per_gpu(self) -> int:
        """Engines that share a GPU; 0 on CPUs."""
        return _whole(1 / self.gpus_per_engine) if self.gpus_per_engine else 0

    def concurrent_clips(self, config: EngineConfig) -> int:
        """How many clips an engine decodes at once, on the largest of the GPUs."""
        gpus_gib = {share.node.gpu_gib for share in self.shares} or {None}
        return max(fit_engine(config, self.engines_per_gpu, gib).concurrent_clips for gib in gpus_gib)

    @property
    def engine_runtime_env(self) -> dict[str, dict[str, str]]:
        """Ray's ``runtime_env`` of an actor that holds an engine."""
        if self.threads_per_engine is None:
            return {}
        # By default OpenMP's threads spin between the engine's kernels, on cores that Listeners share. Measured on two
        # cores: passive ones take a third of the CPU time for the same work.
        return {"env_vars": {"OMP_NUM_THREADS": str(self.threads_per_engine), "OMP_WAIT_POLICY": "PASSIVE"}}

    @property
    def missing(self) -> str:
        """What no node has yet, in words; empty if the job can start."""
        alive = [share for share in self.shares if share.node.alive]
        lacking = []
        if not any(share.engines for share in alive):
            on = [*self.engine_resources] or (["GPU"] if self.gpus_per_engine else ["CPU"])
            lacking.append(f"a node with {' and '.join(on)} for an engine")
        if not any(share.listeners for share in alive):
            lacking.append("a node with CPUs for Listeners")
        return " and ".join(lacking)


def local_slots(cores: int) -> int:
    """Ray's ``num_cpus`` for a cluster of one machine: its cores, and the spare slots."""
    return cores + SPARE_SLOTS


def nodes_of(
    described: Iterable[Mapping[str, Any]], groups: Iterable[tuple[Mapping[str, float], int]] = ()
) -> list[Node]:
    """The nodes of a cluster.

    Args:
        described: the nodes there are, as ``ray.nodes()`` returns them.
        groups: the resources of each kind of node that the autoscaler may add, and how many there may be of it.
    """
    nodes = [_node(each["Resources"], each.get("Labels") or {}) for each in described if each["Alive"]]
    for resources, limit in groups:
        group = _node(resources, {}, alive=False)
        there = sum(_same_kind(group, node) for node in nodes if node.alive)
        nodes += [group] * max(0, limit - there)
    return nodes


def _node(resources: Mapping[str, float], labels: Mapping[str, str], alive: bool = True) -> Node:
    named = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
    standard = ("CPU", "GPU", "memory", "object_store_memory")
    return Node(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        accelerator=labels.get(ACCELERATOR_LABEL) or (named[0] if named else ""),
        memory_gib=resources.get("memory", 0.0) / GIB,
        labels=labels,
        resources={name: amount for name, amount in resources.items() if name not in standard and ":" not in name},
        head="node:__internal_head__" in resources,
        alive=alive,
    )


def _same_kind(one: Node, other: Node) -> bool:
    return (one.cpus, one.gpus, one.resources) == (other.cpus, other.gpus, other.resources)


def plan_layout(nodes: Sequence[Node], config: ClusterConfig) -> Layout:
    """Plans the layout of a job or an endpoint.

    Args:
        nodes: of the cluster, those to come included.
        config: what the user has set, which wins.
    """
    gpus = _gpus_per_engine(nodes, config)
    engines = _limited(_engine_room(nodes, config, gpus), [not node.alive for node in nodes], config.engines)
    total = config.engines or max(1, sum(engines))
    now = sum(count for node, count in zip(nodes, engines, strict=True) if node.alive)
    listeners, selector, anywhere = _listeners(nodes, engines, gpus > 0, config)
    hosts = [Share(node, 0, count) for node, count in zip(nodes, engines, strict=True) if count]
    # On CPUs nothing but their number keeps Listeners from all cores of a node that comes later.
    grows = config.address is not None and (gpus > 0 or config.engine_resource is not None)
    more_may_come = config.address is not None and config.engines is None
    cpus_per_engine = _cpus_per_engine(hosts, gpus > 0, grows, more_may_come)
    # Beside the engines a Listener and a task of Ray Data need a slot each.
    few = 0 < sum(node.ray_slots for node in nodes) < total * cpus_per_engine + 2
    if few:
        cpus_per_engine = min(cpus_per_engine, _few_cpus_per_engine(hosts, gpus > 0, more_may_come))
    return Layout(
        shares=tuple(Share(*each) for each in zip(nodes, listeners, engines, strict=True)),
        listeners=config.listeners or max(1, sum(listeners)),
        engines=total,
        engines_now=max(1, min(total, now)),
        cpus_per_listener=0.5 if few else 1.0,
        cpus_per_engine=cpus_per_engine,
        gpus_per_engine=gpus,
        engine_resources={config.engine_resource: 1.0} if config.engine_resource else {},
        threads_per_engine=None if gpus else min((max(1, _whole(s.node.cpus) // s.engines) for s in hosts), default=1),
        listener_labels=selector,
        listeners_anywhere=anywhere,
        grows=grows,
        alone=bool(hosts) and 2 * cpus_per_engine > max(share.node.ray_slots for share in hosts),
    )


def share_engines(
    waiting: Sequence[float], places: int, held: Sequence[int] = (), limits: Sequence[int] = ()
) -> list[int]:
    """Divides the places of engines between models, by the work that waits for each.

    Each model with work has a place while there are enough; where there are not, those with most work. Each further
    place goes to the model with most work an engine (the highest averages of D'Hondt).

    Args:
        waiting: work that waits for each model, in any unit.
        places: engines that there is room for.
        held: engines that each model has already, which it keeps.
        limits: the most engines of each model.

    Returns:
        The engines of each model; 0 for one that has to wait.
    """
    shares = list(held) or [0] * len(waiting)
    for _ in range(places - sum(shares)):
        wanting = [
            model for model, work in enumerate(waiting) if work > 0 and (not limits or shares[model] < limits[model])
        ]
        if not wanting:
            break
        # Without an engine first.
        most = max(wanting, key=lambda model: (not shares[model], waiting[model] / max(1, shares[model])))
        shares[most] += 1
    return shares


def _whole(amount: float) -> int:
    """Rounded down, except where only float arithmetic is missing."""
    return math.floor(amount + 1e-6)


def _gpus_per_engine(nodes: Sequence[Node], config: ClusterConfig) -> float:
    """The share of a GPU that an engine has, as Ray counts it; 0 for engines on CPUs."""
    if config.gpus_per_engine is not None:
        return config.gpus_per_engine
    gpus = _whole(sum(node.gpus for node in nodes))
    if config.engine_resource or not gpus:
        return 0.0
    # On a cluster more engines than there are GPUs are for GPUs to come.
    on_each = math.ceil(config.engines / gpus) if config.engines and not config.address else 1
    return math.floor(1e4 / on_each) / 1e4  # Ray counts in steps of 1e-4, and would round 1/6 up


def _engine_room(nodes: Sequence[Node], config: ClusterConfig, gpus: float) -> list[int]:
    """How many engines each node has room for."""
    if not config.engine_resource and not gpus:
        return _cpu_engine_room(nodes, config.engines)
    room = []
    for node in nodes:
        by_gpu = _whole(node.gpus / gpus) if gpus else sys.maxsize
        by_resource = _whole(node.resources.get(config.engine_resource, 0)) if config.engine_resource else sys.maxsize
        room.append(min(by_gpu, by_resource))
    return room


def _cpu_engine_room(nodes: Sequence[Node], engines: int | None) -> list[int]:
    """One engine a node, with all its cores; more only where the user asks for more."""
    able = [node.cpus >= 2 and (not node.memory_gib or node.memory_gib >= CPU_ENGINE_GIB) for node in nodes]
    if not any(able):  # the largest that there is
        most = max((node.cpus for node in nodes), default=0)
        able = [node.cpus == most > 0 for node in nodes]
    each = math.ceil(engines / able.count(True)) if engines and any(able) else 1
    return [each if one else 0 for one in able]


def _listeners(
    nodes: Sequence[Node], engines: Sequence[int], on_gpus: bool, config: ClusterConfig
) -> tuple[list[int], dict[str, str], bool]:
    """Listeners by node; the label selector of nodes without engines; whether other nodes may be used too."""
    room = [_listener_room(node, count, on_gpus) for node, count in zip(nodes, engines, strict=True)]
    kept = [bool(count or (on_gpus and node.gpus)) for node, count in zip(nodes, engines, strict=True)]  # for engines
    selector: dict[str, str] = {}
    suffices = False
    apart = sum(count for count, for_engines in zip(room, kept, strict=True) if not for_engines)
    if (apart or config.address) and (on_gpus or config.engine_resource):
        selector = _without(list(itertools.compress(nodes, kept)), on_gpus)
        per_engine = LISTENERS_PER_GPU_ENGINE if on_gpus else LISTENERS_PER_CPU_ENGINE
        suffices = apart >= min(config.listeners or sys.maxsize, per_engine * max(1, sum(engines)))
    if suffices:
        room = [0 if for_engines else count for count, for_engines in zip(room, kept, strict=True)]
    if not any(room) and nodes:  # a machine of few cores still listens
        most = max(range(len(nodes)), key=lambda at: nodes[at].cpus)
        room[most] = int(nodes[most].cpus > 0)
    last = [(for_engines, not node.alive) for node, for_engines in zip(nodes, kept, strict=True)]
    return _limited(room, last, config.listeners), selector, bool(selector) and not suffices


def _listener_room(node: Node, engines: int, on_gpus: bool) -> int:
    """How many Listeners a node has room for beside its engines."""
    cores = _whole(node.cpus)
    if engines:
        cores = cores - CORES_PER_GPU_ENGINE * engines if on_gpus else max(1, int(LISTENER_SHARE * cores))
    by_memory = max(1, int(node.memory_gib / LISTENER_GIB)) if node.memory_gib else cores
    return max(0, min(cores, by_memory))


def _without(hosts: Sequence[Node], on_gpus: bool) -> dict[str, str]:
    """A label selector of Ray for other nodes than ``hosts``.

    Nodes with GPUs are known by their kind, which holds for those that come later; others by their id.
    """
    ids = [host.labels.get(NODE_ID_LABEL) for host in hosts if not (on_gpus and host.accelerator)]
    selector = {NODE_ID_LABEL: f"!in({','.join(sorted(filter(None, ids)))})"} if any(ids) else {}
    if on_gpus:
        kinds = {*MEMORY_GIB, *(host.accelerator for host in hosts if host.accelerator)}
        selector[ACCELERATOR_LABEL] = f"!in({','.join(sorted(kinds))})"
    return selector


def _limited(room: Sequence[int], last: Sequence[Any], limit: int | None) -> list[int]:
    """``room``, in sum at most ``limit``; the nodes with the lowest values of ``last`` are filled first."""
    left = sys.maxsize if limit is None else limit
    taken = [0] * len(room)
    for at in sorted(range(len(room)), key=lambda at: last[at]):
        taken[at] = min(room[at], left)
        left -= taken[at]
    return taken


def _cpus_per_engine(hosts: Sequence[Share], on_gpus: bool, grows: bool, more_may_come: bool) -> float:
    """What Ray reserves for an engine.

    Nothing where nodes come later, so that Listeners that are there first cannot keep an engine from its GPU; nor where
    the owner of a GPU node declares no CPUs, which keeps Listeners away from it. On CPUs more than one only where
    several nodes have an engine, or may have: then Ray must not place two on one node.
    """
    if grows:
        return 0.0
    if on_gpus:
        return float(all(share.node.ray_slots >= share.engines for share in hosts))
    if not hosts or (len(hosts) == 1 and not more_may_come):
        return 1.0
    free = (_whole(share.node.cpus) - _listener_room(share.node, share.engines, False) for share in hosts)
    return float(max(1, min(room // share.engines for room, share in zip(free, hosts, strict=True))))


def _few_cpus_per_engine(hosts: Sequence[Share], on_gpus: bool, more_may_come: bool) -> float:
    """The same where CPUs are few; on those of a cluster, from four on, still so many that no second engine fits."""
    if on_gpus:
        return 0.0
    fewest = min((share.node.ray_slots for share in hosts), default=0.0)
    return fewest / 2 + 0.5 if more_may_come and fewest >= 4 else 0.5
