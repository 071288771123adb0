"""The head of overlays/production/service is lost, whose cluster's state is in a Redis: the endpoint goes on answering.

As KubeRay does, another pod takes its place, at another address and under the same name.
"""

import contextlib
import functools
import shutil
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.kuberay import DEMO_IMAGE, TIMEOUT_S, await_nodes, cluster_of, deploy, ray_start
from tests.k8s.pod_runner import Cluster, Network, Running, why_not
from tests.k8s.rendered import ROOT, Pod, document, pods

WHY_NOT = why_not() or ("" if shutil.which("redis-server") else "needs redis-server, a package of Debian's")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.engine,
    pytest.mark.long,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
PRODUCTION = "overlays/production/service"
HEAD_NAME = "rayscribe-head-svc"  # of KubeRay's Service, by which workers find a head whatever its address
# Asks one request after another; each answer, or why there was none, is a line of the file.
ASK_ON = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from openai import OpenAI, OpenAIError

    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=sys.argv[1], max_retries=0, timeout=120)
    call = Path("/opt/demo/samples/billing-001.wav").read_bytes()
    with open("/home/ray/answers", "w", buffering=1) as answers:
        while not os.path.exists("/home/ray/enough"):
            try:
                said = client.audio.transcriptions.create(file=("call.wav", call), model="whisper-1").text
            except OpenAIError as error:
                said = repr(error)
            print(said, file=answers)
""")
LOST_S = 75.0  # longer than a raylet waits for its head unless it is told otherwise (60 s)


class Names:
    """What the cluster's DNS says: the file /etc/hosts of every pod."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._addresses = {"localhost": "127.0.0.1"}
        self._write()

    def __setitem__(self, name: str, address: str) -> None:
        self._addresses[name] = address
        self._write()

    def _write(self) -> None:
        self.file.write_text("".join(f"{address} {name}\n" for name, address in self._addresses.items()))


def _production_config(endpoints: int) -> dict[str, Any]:
    """serveConfigV2, for one engine, which computes on the CPU: the GPU is one that only Ray's resources have."""
    config: dict[str, Any] = yaml.safe_load(document(PRODUCTION, "RayService")["spec"]["serveConfigV2"])
    [application] = config["applications"]
    application["args"] |= {"engine": "transformers", "engines": 1, "min_engines": 1, "listeners": 2}
    application["deployments"][0]["num_replicas"] = endpoints
    return config


def _await_healthy(head: Running, endpoints: int) -> None:
    """Until `serve status` says that all deployments are healthy, with so many Endpoints."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        shown = head.execute("serve", "status", "--address", "http://127.0.0.1:8265")
        application = (yaml.safe_load(shown.stdout) or {}).get("applications", {}).get("rayscribe", {})
        deployments = application.get("deployments", {})
        running = deployments.get("Endpoint", {}).get("replica_states", {}).get("RUNNING")
        healthy = application.get("status") == "RUNNING" and running == endpoints
        if healthy and {each["status"] for each in deployments.values()} == {"HEALTHY"}:
            return
    raise AssertionError(shown.stdout + shown.stderr + head.log.read_text())


def test_the_endpoint_answers_while_its_head_is_lost_and_another_takes_over(network: Network, tmp_path: Path) -> None:
    by_name = {pod.name: pod for pod in pods(PRODUCTION)}
    key = "a-key-of-a-client"
    secrets = {"rayscribe-keys": {"keys": key}, "rayscribe-redis": {"password": "a-password"}}
    cluster = cluster_of(network, tmp_path, PRODUCTION, config_maps={}, secrets=secrets)
    names = Names(tmp_path / "hosts")
    cluster.images = {**DEMO_IMAGE, "/etc/hosts": names.file}
    model = _production_config(2)["applications"][0]["args"]["model"]
    shutil.copytree(ROOT / "demo" / "model", tmp_path / "rayscribe-weights" / Path(model).name)
    redis = Pod("redis", {}, {}, by_name["head"].spec, {})
    with contextlib.ExitStack() as stack:
        start = functools.partial(_start_pod, stack, cluster)
        command = ["redis-server", "--requirepass", "a-password", "--save", "", "--dir", "/tmp"]
        names["rayscribe-redis"] = start(redis, command).address
        head_stack = stack.enter_context(contextlib.ExitStack())
        head = head_stack.enter_context(cluster.run(by_name["head"], ray_start(by_name["head"], None)))
        names[HEAD_NAME] = head.address
        workers = [start(by_name[name], ray_start(by_name[name], HEAD_NAME)) for name in ("listeners", "engines")]
        await_nodes(head, 3)
        deploy(head, yaml.safe_dump(_production_config(2)))
        listeners = workers[0]
        answers = listeners.home / "home" / "answers"
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(listeners.execute, "python", "-c", ASK_ON, key, timeout_s=TIMEOUT_S)
            try:
                _await_answers(answers, 3)
                head_stack.close()
                lost_at, before = time.monotonic(), len(answers.read_text().splitlines())
                while time.monotonic() < lost_at + LOST_S:
                    _await_answers(answers, len(answers.read_text().splitlines()) + 1)
                assert len(answers.read_text().splitlines()) > before + 3
                head = start(by_name["head"], ray_start(by_name["head"], None))
                names[HEAD_NAME] = head.address
                _await_healthy(head, 2)
                _await_answers(answers, len(answers.read_text().splitlines()) + 3)
            finally:
                (listeners.home / "home" / "enough").touch()
            asked = asking.result()
        assert asked.returncode == 0, asked.stderr
        assert all(worker.process.poll() is None for worker in workers)
        deploy(head, yaml.safe_dump(_production_config(3)))  # the new head's controller changes what runs
        _await_healthy(head, 3)
    said = answers.read_text().splitlines()
    assert all("thank you for calling" in each for each in said), said


def _start_pod(stack: contextlib.ExitStack, cluster: Cluster, pod: Pod, command: list[str]) -> Running:
    return stack.enter_context(cluster.run(pod, command))


def _await_answers(file: Path, number: int) -> None:
    """Until so many requests have been answered."""
    until = time.monotonic() + TIMEOUT_S
    while not file.exists() or len(file.read_text().splitlines()) < number:
        assert time.monotonic() < until, file.read_text() if file.exists() else "no answer"
        time.sleep(0.1)
