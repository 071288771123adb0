"""A cluster of several raylets on this machine, and a driver of the job in a process of its own.

A driver joins it as it would join a real one. Not the tests' own process: that has a Ray already (``ray_here``).
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from pipelines.job import Job
from speech.engines.base import ClipRequest, EngineConfig, EngineStarter
from speech.engines.fake import FakeEngine, reply_with_length, start_fake
from speech.models.families import Family
from speech.transcriber import WARM_UP_ID
from testing.pacing import paced
from tests.pipelines.jobs import wait_for_turn

# Seconds of speech a second of an engine, and of one clip.
PACE = 20.0, 10.0


@dataclass(frozen=True)
class Placed:
    """What a run on a cluster has left: where its actors were, and what it printed on stderr."""

    listeners: set[str]  # names of nodes
    engines: set[str]
    shown: str


@contextlib.contextmanager
def head_alone() -> Iterator[Any]:
    """A cluster of a head without work. The others come later."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    cluster.add_node(num_cpus=0)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def nodes_there(cluster: Any) -> set[str]:
    return {node["Labels"].get("name", "head") for node in cluster.global_state.node_table() if node["Alive"]}


def say_node(clip: ClipRequest) -> str:
    """The text of a clip: the name of the node that the engine is on."""
    import ray

    return str(ray.get_runtime_context().get_node_labels()["name"])


def start_on_node(config: EngineConfig, family: Family) -> FakeEngine:
    return start_fake(config, family, say_node)


def asked_file(flag: Path) -> Path:
    return flag.with_suffix(".asked")


async def wait_for_late(clip: ClipRequest, flag: Path) -> None:
    """Says that there is a clip, in a file. Waits for the file ``flag``, which the node "late" makes."""
    if clip.id == WARM_UP_ID:
        return
    with asked_file(flag).open("a") as file:
        file.write(f"{clip.recording_id}\n")
    if say_node(clip) == "late":
        flag.touch()
    while not flag.exists():
        await asyncio.sleep(0.05)


def flag_of(output: str) -> Path:
    """The file for which engines wait, in a run with this output."""
    return Path(output).with_name("go-on")


def start_waiting(config: EngineConfig, family: Family, flag: Path) -> FakeEngine:
    return start_fake(config, family, say_node, partial(wait_for_late, flag=flag))


def decoded_file(flag: Path) -> Path:
    return flag.with_suffix(".decoded")


async def leave_going(clip: ClipRequest, flag: Path, notice: bool) -> None:
    """The node "going" finishes what it has; "staying" waits for the file ``flag``, which the node "late" makes.

    Args:
        notice: whether the engine of "going" drains its node, as upon a cloud's notice, with its first clip.
    """
    from cluster import ray_internals

    if clip.id == WARM_UP_ID:
        return
    node = say_node(clip)
    if node == "going" and not asked_file(flag).exists():
        if notice:
            ray_internals.drain_this_node(120)
        asked_file(flag).touch()
    if node == "late":
        flag.touch()
    while node == "staying" and not flag.exists():
        await asyncio.sleep(0.05)
    with decoded_file(flag).open("a") as file:
        file.write(f"{clip.recording_id}\n")


def start_leaving(config: EngineConfig, family: Family, flag: Path, notice: bool) -> FakeEngine:
    return start_fake(config, family, say_node, partial(leave_going, flag=flag, notice=notice))


async def hang_going(clip: ClipRequest, flag: Path) -> None:
    """The node "going" says that it has a clip, and never answers."""
    if clip.id != WARM_UP_ID and say_node(clip) == "going":
        asked_file(flag).touch()
        await asyncio.Future()


def start_hanging(config: EngineConfig, family: Family, flag: Path) -> FakeEngine:
    return start_fake(config, family, say_node, partial(hang_going, flag=flag))


async def take_turns(clip: ClipRequest, flag: Path) -> None:
    """Recordings whose number is not below that in the file ``flag`` wait."""
    if clip.id != WARM_UP_ID:
        await wait_for_turn(clip, flag)
        with decoded_file(flag).open("a") as file:
            file.write(f"{clip.recording_id}\n")


def start_turns(config: EngineConfig, family: Family, flag: Path) -> FakeEngine:
    return start_fake(config, family, reply_with_length, partial(take_turns, flag=flag))


def kill_all(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to a process and to all that it has started, as the loss of its machine would."""
    for each in [*children_of(process), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def children_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def transcribe_on(address: str, **settings: Any) -> Placed:
    """Runs the job in a driver process on the cluster at ``address``."""
    return placed(start_driver(address, **settings))


def start_driver(address: str, what: str = "run", **settings: Any) -> "subprocess.Popen[str]":
    """Starts the job in a driver process.

    Args:
        what: "run"; "run_waiting" with engines that ``wait_for_late``; "run_leaving" and "run_draining" with those that
            ``leave_going``, the second on a notice; "run_hanging" with those that ``hang_going``; "run_in_turns" and
            "run_elsewhere" with those that ``take_turns``, the second as if on another machine; "run_paced" with those
            that take as long as ``PACE`` has it.
    """
    command = [sys.executable, "-m", "tests.pipelines.raylets", what, json.dumps({"address": address, **settings})]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def placed(driver: "subprocess.Popen[str]", shown: str = "") -> Placed:
    """Where the actors of a run were, when it has ended. ``shown``: what was read of its stderr before."""
    out, more = driver.communicate(timeout=300)
    assert driver.returncode == 0, shown + more
    where = json.loads(out.splitlines()[-1])
    return Placed({*where["listeners"]}, {*where["engines"]}, shown + more)


def place_listeners(address: str, count: int) -> list[str]:
    """The names of the nodes on which ``count`` actors find themselves, each with the resources of a Listener."""
    out, shown = start_driver(address, "place", listeners=count).communicate(timeout=300)
    assert out, shown
    names: list[str] = json.loads(out.splitlines()[-1])
    return names


def _run(settings: dict[str, Any], start: EngineStarter = start_on_node) -> Any:
    from pipelines.run import run

    run(Job.from_settings(settings), start)
    return {"listeners": _nodes_of_actors("Listen"), "engines": _nodes_of_actors("Transcribe")}


def _run_waiting(settings: dict[str, Any]) -> Any:
    return _run(settings, partial(start_waiting, flag=flag_of(settings["output"])))


def _run_leaving(settings: dict[str, Any], notice: bool = False) -> Any:
    return _run(settings, partial(start_leaving, flag=flag_of(settings["output"]), notice=notice))


def _run_hanging(settings: dict[str, Any]) -> Any:
    return _run(settings, partial(start_hanging, flag=flag_of(settings["output"])))


def _run_in_turns(settings: dict[str, Any], host: str | None = None) -> Any:
    if host:  # what the lease calls this machine
        socket.gethostname = lambda: host
    return _run(settings, partial(start_turns, flag=flag_of(settings["output"])))


def _place(settings: dict[str, Any]) -> Any:
    import ray

    from cluster.session import cluster_layout, connect_ray
    from cluster.settings import ClusterConfig
    from pipelines.graph import listener_resources

    connect_ray(settings["address"])
    layout = cluster_layout(ClusterConfig(**settings))

    class Actor:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_labels()["name"])

    options = {"scheduling_strategy": "DEFAULT", **listener_resources(layout)}
    actors = [ray.remote(Actor).options(**options).remote() for _ in range(settings["listeners"])]
    return ray.get([actor.node.remote() for actor in actors])


def _nodes_of_actors(stage: str) -> list[str]:
    """The names of the nodes on which actors of a stage of this job have been."""
    import ray
    from ray._private.state import actors

    names = {node["NodeID"]: node["Labels"].get("name", "head") for node in ray.nodes()}
    job = ray.get_runtime_context().get_job_id()
    mine = (actor for actor in actors().values() if actor["JobID"] == job and stage in actor["ActorClassName"])
    return sorted({names[actor["Address"]["NodeID"]] for actor in mine})


def main(arguments: Sequence[str]) -> None:
    what, settings = arguments
    functions: dict[str, Callable[[dict[str, Any]], Any]] = {
        "run": _run,
        "run_waiting": _run_waiting,
        "run_leaving": _run_leaving,
        "run_draining": partial(_run_leaving, notice=True),
        "run_hanging": _run_hanging,
        "run_in_turns": _run_in_turns,
        "run_elsewhere": partial(_run_in_turns, host="another-machine"),
        "run_paced": partial(_run, start=paced(*PACE)),
        "place": _place,
    }
    print(json.dumps(functions[what](json.loads(settings))))


if __name__ == "__main__":
    main(sys.argv[1:])
