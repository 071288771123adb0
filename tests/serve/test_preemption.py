"""The endpoint on a cluster from which a node is taken away."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from testing.ports import free_port
from tests.pipelines.raylets import head_alone, nodes_there
from tests.serve.conftest import eventually
from tests.serve.direct import CALL

pytestmark = [pytest.mark.ray, pytest.mark.long]

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "demo" / "model")
# What each kind of node has, and which deployments are there.
NODES: dict[str, dict[str, int]] = {"cpu": {"num_cpus": 6}, "gpu": {"num_cpus": 0, "num_gpus": 1}}
DEPLOYMENTS = {"cpu": {"Endpoint", "Listener"}, "gpu": {"Transcriber"}}
# Python's own hook at a process's start: what this node's cloud says.
CLOUD = """
from pathlib import Path

from cluster import preemption


def notice():
    return 120.0 if Path({announced!r}).exists() else None


preemption.notice_here = lambda: notice
"""


class Client:
    """Asks an endpoint one short request after another, in a thread of its own.

    Attributes:
        answers: the status and the text of each.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[int, str]] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask_on)
        self._thread.start()

    def _ask_on(self) -> None:
        while not self._enough.is_set():
            answer = ask(self.url, "which node")
            self.answers.append((answer.status_code, answer.text))

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()


def ask(url: str, *keywords: str) -> httpx.Response:
    data: dict[str, Any] = {"model": MODEL, "keywords[]": [*keywords], "response_format": "text"}
    return httpx.post(f"{url}/v1/audio/transcriptions", data=data, files={"file": ("call.wav", CALL)}, timeout=120)


def deploy(address: str, folder: Path) -> str:
    """Deploys the endpoint on a cluster, by a Serve config; its URL once it answers."""
    port = free_port()
    endpoint = {"name": "Endpoint", "num_replicas": 1, "ray_actor_options": {"num_cpus": 1}}  # never on the head
    application = {
        "name": "rayscribe",
        "route_prefix": "/",
        "import_path": "tests.serve.scripted:build",
        "args": {"folder": str(folder), "model": MODEL, "gpus_per_engine": 1, "listeners": 2},
        "deployments": [endpoint],
    }
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "proxy_location": "HeadOnly",
        "applications": [application],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("serve")), "run", str(path), "--address", address, "--non-blocking"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/v1/models").status_code == 200
        except httpx.TransportError:
            return False

    eventually(answers)
    return url


def deployments_on(cluster: Any, node: str) -> set[str]:
    """The deployments that have replicas on a node."""
    [node_id] = [each["NodeID"] for each in cluster.global_state.node_table() if each["Labels"].get("name") == node]
    actors = [actor for actor in cluster.global_state.actor_table(None).values() if actor["State"] == "ALIVE"]
    names = [actor["Name"] for actor in actors if actor["Address"]["NodeID"] == node_id]
    return {name.split("#")[1] for name in names if name.startswith("SERVE_REPLICA")}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_another_node_takes_over_before_a_machine_is_taken_away(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request fails: what is in flight is finished where it is, what comes is answered by another node."""
    announced = tmp_path / "announced"
    cloud = tmp_path / "cloud"
    cloud.mkdir()
    (cloud / "sitecustomize.py").write_text(CLOUD.format(announced=str(announced)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    [other] = NODES.keys() - {kind}
    with head_alone() as cluster:
        cluster.add_node(**NODES[other], labels={"name": "other"})
        cluster.add_node(**NODES[kind], labels={"name": "going"}, env_vars={"PYTHONPATH": f"{cloud}:{ROOT}"})
        url = deploy(cluster.address, tmp_path)
        assert deployments_on(cluster, "going") == DEPLOYMENTS[kind]
        cluster.add_node(**NODES[kind], labels={"name": "staying"})
        in_flight: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: in_flight.append(ask(url, "wait", "which node")))
        waiting.start()
        eventually(lambda: [*tmp_path.glob("waits-*")])
        client = Client(url)
        try:
            eventually(lambda: client.answers)
            announced.touch()
            eventually(lambda: deployments_on(cluster, "staying") == DEPLOYMENTS[kind])
            eventually(lambda: kind == "cpu" or "staying" in client.answers[-1][1])
            (tmp_path / "go").touch()
            waiting.join()
            eventually(lambda: "going" not in nodes_there(cluster))
        finally:
            (tmp_path / "go").touch()
            client.stop()
    [answer] = in_flight
    engine = {"cpu": "other", "gpu": "going"}[kind]
    assert (answer.status_code, answer.text.split()[0]) == (200, engine)
    assert {status for status, _ in client.answers} == {200}
    answered_by = [text.split()[0] for _, text in client.answers]
    assert {*answered_by} == ({"other"} if kind == "cpu" else {"going", "staying"})
    assert answered_by == sorted(answered_by)  # by the node that stays, from then on
