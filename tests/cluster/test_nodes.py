"""The layout of actors over nodes, as a table of clusters."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.nodes import ACCELERATOR_LABEL, NODE_ID_LABEL, Node, nodes_of, plan_layout, share_engines
from cluster.settings import ClusterConfig
from speech.engines.base import EngineConfig

LAPTOP = Node(cpus=2, slots=6, memory_gib=15)
HEAD = Node(cpus=0, head=True)
CPU_NODE = Node(cpus=16, memory_gib=60)
EIGHT_GPUS = Node(cpus=128, gpus=8, accelerator="H100", memory_gib=1000)
L4_NODE = Node(cpus=8, gpus=1, accelerator="L4", memory_gib=30)
TO_COME = Node(cpus=8, gpus=1, accelerator="L4", memory_gib=30, alive=False)


@dataclass(frozen=True)
class Case:
    nodes: list[Node]
    listeners: list[int]  # by node
    engines: list[int]
    settings: dict[str, Any] = field(default_factory=dict)
    gpus_per_engine: float = 0.0
    cpus_per_engine: float = 1.0
    threads: int | None = None
    apart: bool = False  # Listeners have a label selector of their own
    anywhere: bool = False
    missing: str = ""


CASES = {
    "laptop": Case([LAPTOP], [1], [1], threads=2),
    "laptop, the user decides": Case([LAPTOP], [1], [2], {"engines": 2, "listeners": 2}, threads=1),
    "8 GPUs": Case([EIGHT_GPUS], [112], [8], gpus_per_engine=1.0),
    "few cores beside the GPUs": Case([Node(cpus=4, slots=8, gpus=4)], [1], [4], gpus_per_engine=1.0),
    "more engines than GPUs": Case(
        [Node(cpus=8, gpus=2)], [1], [4], {"engines": 4, "listeners": 3}, gpus_per_engine=0.5
    ),
    "a share that Ray must not round up": Case(
        [Node(cpus=32, gpus=1)], [20], [6], {"engines": 6}, gpus_per_engine=0.1666
    ),
    "half a GPU an engine": Case([Node(cpus=8, gpus=1)], [4], [2], {"gpus_per_engine": 0.5}, gpus_per_engine=0.5),
    "GPUs not wanted": Case([L4_NODE], [2], [1], {"gpus_per_engine": 0.0}, threads=8),
    "CPU nodes suffice: GPU nodes do not decode": Case(
        [HEAD, CPU_NODE, L4_NODE, L4_NODE], [0, 16, 0, 0], [0, 0, 1, 1], gpus_per_engine=1.0, apart=True
    ),
    "CPU nodes do not suffice": Case(
        [HEAD, Node(cpus=4), EIGHT_GPUS], [0, 4, 112], [0, 0, 8], gpus_per_engine=1.0, apart=True, anywhere=True
    ),
    "few Listeners wanted": Case(
        [Node(cpus=4), EIGHT_GPUS], [3, 0], [0, 8], {"listeners": 3}, gpus_per_engine=1.0, apart=True
    ),
    "GPU nodes that declare no CPUs": Case(
        [CPU_NODE, Node(cpus=0, gpus=1)], [16, 0], [0, 1], gpus_per_engine=1.0, cpus_per_engine=0.0, apart=True
    ),
    "CPUs only, many nodes": Case([HEAD, CPU_NODE, CPU_NODE], [0, 4, 4], [0, 1, 1], cpus_per_engine=12.0, threads=16),
    "CPUs only, one small worker": Case([HEAD, Node(cpus=2)], [0, 1], [0, 1], cpus_per_engine=0.5, threads=2),
    "memory is short": Case(
        [Node(cpus=32, memory_gib=6), L4_NODE], [6, 6], [0, 1], gpus_per_engine=1.0, apart=True, anywhere=True
    ),
    "a custom resource": Case(
        [HEAD, Node(cpus=4), Node(cpus=4, resources={"engine": 2.0}, labels={NODE_ID_LABEL: "ab12"})],
        [0, 4, 0],
        [0, 0, 2],
        {"engine_resource": "engine"},
        threads=2,
        apart=True,
    ),
    "GPUs not there yet": Case(
        [HEAD, CPU_NODE, TO_COME],
        [0, 16, 0],
        [0, 0, 1],
        gpus_per_engine=1.0,
        apart=True,
        missing="a node with GPU for an engine",
    ),
    "GPUs of which nothing is known yet": Case(
        [HEAD, CPU_NODE],
        [0, 16],
        [0, 0],
        {"gpus_per_engine": 1.0},
        gpus_per_engine=1.0,
        apart=True,
        missing="a node with GPU for an engine",
    ),
    "nothing there yet": Case(
        [HEAD],
        [0],
        [0],
        missing="a node with CPU for an engine and a node with CPUs for Listeners",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layout(name: str) -> None:
    case = CASES[name]
    layout = plan_layout(case.nodes, ClusterConfig(**case.settings))
    assert [share.listeners for share in layout.shares] == case.listeners
    assert [share.engines for share in layout.shares] == case.engines
    assert layout.listeners == case.settings.get("listeners", max(1, sum(case.listeners)))
    assert layout.engines == max(1, sum(case.engines))
    assert (layout.gpus_per_engine, layout.cpus_per_engine) == (case.gpus_per_engine, case.cpus_per_engine)
    assert layout.threads_per_engine == (case.threads or (None if case.gpus_per_engine else 1))
    assert (bool(layout.listener_labels), layout.listeners_anywhere) == (case.apart, case.anywhere)
    assert layout.missing == case.missing


def test_what_the_user_sets_holds_before_the_nodes_are_there() -> None:
    layout = plan_layout([HEAD], ClusterConfig(listeners=28, engines=2, gpus_per_engine=1.0))
    assert (layout.listeners, layout.engines, layout.gpus_per_engine) == (28, 2, 1.0)


def test_actors_leave_a_slot_for_tasks_of_ray_data() -> None:
    for cpus in (2, 3, 4, 8):
        layout = plan_layout([HEAD, Node(cpus=cpus)], ClusterConfig())
        assert layout.engines * layout.cpus_per_engine + layout.cpus_per_listener <= cpus - 1


@pytest.mark.parametrize(
    ("nodes", "settings", "grows", "engines_now"),
    [
        ([L4_NODE], {}, False, 1),  # this machine alone
        ([HEAD, CPU_NODE, L4_NODE, TO_COME], {"address": "auto"}, True, 1),
        ([HEAD, CPU_NODE], {"address": "auto", "gpus_per_engine": 1.0}, True, 1),
        ([HEAD, CPU_NODE, CPU_NODE], {"address": "auto"}, False, 2),
        ([HEAD, CPU_NODE, L4_NODE], {"address": "auto", "engines": 3}, True, 1),
    ],
)
def test_pools_grow_where_engines_have_nodes_of_their_own(
    nodes: list[Node], settings: dict[str, Any], grows: bool, engines_now: int
) -> None:
    layout = plan_layout(nodes, ClusterConfig(**settings))
    assert (layout.grows, layout.engines_now) == (grows, engines_now)


@pytest.mark.parametrize(
    ("nodes", "settings", "alone"),
    [
        ([HEAD, CPU_NODE], {"address": "auto"}, True),
        ([HEAD, CPU_NODE, CPU_NODE], {"address": "auto"}, True),
        ([HEAD, Node(cpus=4)], {"address": "auto"}, True),
        ([HEAD, Node(cpus=6)], {"address": "auto"}, True),
        ([HEAD, Node(cpus=2)], {"address": "auto"}, False),  # an engine has so little that another fits
        ([CPU_NODE], {}, False),  # this machine alone
    ],
)
def test_engines_on_cpus_are_alone_on_nodes_of_a_cluster(
    nodes: list[Node], settings: dict[str, Any], alone: bool
) -> None:
    layout = plan_layout(nodes, ClusterConfig(**settings))
    assert layout.alone == alone
    hosts = [share.node for share in layout.shares if share.engines]
    assert all(2 * layout.cpus_per_engine > host.cpus for host in hosts) == alone
    # A Listener and a task of Ray Data fit beside it.
    assert all(layout.cpus_per_engine + layout.cpus_per_listener <= host.cpus - 1 for host in hosts) or len(hosts) > 1


def test_listeners_cannot_keep_engines_from_nodes_that_come_later() -> None:
    """By taking all CPUs there."""
    assert plan_layout([HEAD, CPU_NODE, L4_NODE], ClusterConfig(address="auto")).cpus_per_engine == 0.0


def test_listeners_avoid_gpu_nodes_that_come_later() -> None:
    """Before any node is there they may go anywhere, but to GPU nodes last."""
    layout = plan_layout([HEAD], ClusterConfig(address="auto", gpus_per_engine=1.0))
    assert "H100" in layout.listener_labels[ACCELERATOR_LABEL]
    assert layout.listeners_anywhere


def described(labels: dict[str, str], alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"node:10.0.0.1": 1.0, **resources}, "Labels": labels}


def test_nodes_as_ray_describes_them() -> None:
    head = {"Alive": True, "Resources": {"node:__internal_head__": 1.0, "memory": 8.0 * (1 << 30)}, "Labels": {}}
    gpu = described({ACCELERATOR_LABEL: "L4", NODE_ID_LABEL: "ab"}, CPU=7.0, GPU=1.0, tpu=2.0)
    nodes = nodes_of([head, gpu, described({}, alive=False, CPU=64.0)])
    assert [(node.head, node.cpus, node.gpus, node.accelerator) for node in nodes] == [
        (True, 0.0, 0.0, ""),
        (False, 7.0, 1.0, "L4"),
    ]
    assert nodes[0].memory_gib == 8.0
    assert nodes[1].resources == {"tpu": 2.0}


def test_nodes_that_the_autoscaler_may_add_beside_those_there_are() -> None:
    nodes = nodes_of([described({}, CPU=7.0)], [({"CPU": 7.0}, 3), ({"CPU": 7.0, "GPU": 1.0}, 2)])
    assert [(node.alive, node.gpus) for node in nodes] == [
        (True, 0),
        (False, 0),
        (False, 0),
        (False, 1),
        (False, 1),
    ]


def test_listeners_avoid_kinds_of_gpus_and_engine_nodes_without_a_kind() -> None:
    unnamed = Node(cpus=8, gpus=1, labels={NODE_ID_LABEL: "ab12"})
    own = Node(cpus=8, gpus=1, accelerator="MI300X")
    labels = plan_layout([CPU_NODE, CPU_NODE, unnamed, own], ClusterConfig()).listener_labels
    assert labels[NODE_ID_LABEL] == "!in(ab12)"
    kinds = labels[ACCELERATOR_LABEL].removeprefix("!in(").removesuffix(")").split(",")
    assert {"MI300X", "H100", "T4"} <= {*kinds}


@pytest.mark.parametrize(
    ("waiting", "places", "held", "shares"),
    [
        ([5], 8, [], [8]),
        ([100, 300], 4, [], [1, 3]),
        ([1, 1000], 4, [], [1, 3]),  # each model with work has an engine
        ([100, 300, 200], 1, [], [0, 1, 0]),  # the one with most work first
        ([100, 300, 200], 2, [], [0, 1, 1]),
        ([0, 300, 0], 2, [], [0, 2, 0]),
        ([0, 0], 2, [], [0, 0]),
        ([10, 0, 30], 4, [1, 0, 0], [1, 0, 3]),  # one has ended: its places go to the others
        ([10, 30], 4, [3, 1], [3, 1]),  # nothing is taken away
    ],
)
def test_engines_are_shared_by_the_work_that_waits(
    waiting: list[float], places: int, held: list[int], shares: list[int]
) -> None:
    assert share_engines(waiting, places, held) == shares


def test_a_model_gets_no_more_engines_than_its_limit() -> None:
    assert share_engines([100, 300], 8, limits=[8, 2]) == [6, 2]
    assert share_engines([100, 300], 8, limits=[1, 2]) == [1, 2]


def test_a_part_of_a_layout_has_as_many_of_the_listeners() -> None:
    whole = plan_layout([Node(cpus=64, gpus=8)], ClusterConfig())
    assert (whole.engines, whole.listeners) == (8, 48)
    assert (whole.share(2, 1).engines, whole.share(2, 1).engines_now, whole.share(2, 1).listeners) == (2, 1, 12)
    assert whole.share(8, 8) == whole
    few = plan_layout([LAPTOP], ClusterConfig(engines=3))
    assert (few.listeners, few.cpus_per_listener) == (1, 1.0)
    assert (few.share(1, 1).listeners, few.share(1, 1).cpus_per_listener) == (1, 0.3333)  # or no slot would be left


@pytest.mark.parametrize(
    ("nodes", "config", "clips"),
    [
        ([LAPTOP], EngineConfig(), 64),
        ([CPU_NODE, Node(cpus=8, gpus=1), Node(cpus=8, gpus=8, accelerator="H100")], EngineConfig(), 1024),
        ([Node(cpus=8, gpus=1)], EngineConfig(), 64),  # its kind is not known
        ([L4_NODE], EngineConfig(concurrent_clips=7), 7),
    ],
)
def test_the_largest_gpu_says_how_many_clips_an_engine_has(nodes: list[Node], config: EngineConfig, clips: int) -> None:
    assert plan_layout(nodes, ClusterConfig()).concurrent_clips(config) == clips
