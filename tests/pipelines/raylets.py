"""A cluster of several raylets on this machine, and a driver of the job in a process of its own.

A driver joins it as it would join a real one. Not the tests' own process: that has a Ray already (``ray_here``).
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.job import Job
from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.fake import FakeEngine, start_fake
from speech.models.families import Family


@dataclass(frozen=True)
class Placed:
    """What a run on a cluster has left: where its actors were, and what it printed on stderr."""

    listeners: set[str]  # names of nodes
    engines: set[str]
    shown: str


def say_node(clip: ClipRequest) -> str:
    """The text of a clip: the name of the node that the engine is on."""
    import ray

    return str(ray.get_runtime_context().get_node_labels()["name"])


def start_on_node(config: EngineConfig, family: Family) -> FakeEngine:
    return start_fake(config, family, say_node)


def transcribe_on(address: str, **settings: Any) -> Placed:
    """Runs the job in a driver process on the cluster at ``address``."""
    done = _drive("run", {"address": address, **settings})
    placed = json.loads(done.stdout.splitlines()[-1])
    return Placed({*placed["listeners"]}, {*placed["engines"]}, done.stderr)


def place_listeners(address: str, count: int) -> list[str]:
    """The names of the nodes on which ``count`` actors find themselves, each with the resources of a Listener."""
    placed: list[str] = json.loads(_drive("place", {"address": address, "listeners": count}).stdout.splitlines()[-1])
    return placed


def _drive(what: str, settings: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.pipelines.raylets", what, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def _run(settings: dict[str, Any]) -> Any:
    from pipelines.run import run

    run(Job.from_settings(settings), start_on_node)
    return {"listeners": _nodes_of_actors("Listen"), "engines": _nodes_of_actors("Transcribe")}


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
    print(json.dumps({"run": _run, "place": _place}[what](json.loads(settings))))


if __name__ == "__main__":
    main(sys.argv[1:])
