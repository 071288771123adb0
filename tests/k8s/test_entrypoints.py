"""The manifests of k8s/overlays, run: every pod in namespaces of its own, with the commands that KubeRay makes.

Ray's head, worker and submitter are separate pods, which reach each other over a network and share what a volume of the
manifest shares. Their root file systems are read only, and their user and privileges are the manifest's.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.output import Output
from storage.filesystem import Storage
from tests.k8s.pod_runner import RUNNABLE, WHY_NOT, Cluster, Network, Running
from tests.k8s.rendered import ROOT, Pod, document, in_bytes, in_cores, pods

pytestmark = [
    pytest.mark.ray,
    pytest.mark.engine,
    pytest.mark.skipif(not RUNNABLE, reason=WHY_NOT),
]
# What docker build --target demo puts into the image.
DEMO_IMAGE = {"/opt/demo/model": ROOT / "demo" / "model", "/opt/demo/samples": ROOT / "demo" / "samples"}
TOKEN = "0123456789abcdef" * 4
TIMEOUT_S = 420.0
# What becomes of the sample calls: two are broken on purpose.
SAMPLES = [json.loads(line) for line in (ROOT / "demo" / "samples" / "manifest.jsonl").read_text().splitlines()]
BROKEN = {"corrupt-018", "empty-019"}


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network.open() as network:
        yield network


def _cluster(network: Network, folder: Path, overlay: str, **given: dict[str, dict[str, str]]) -> Cluster:
    maps = {document(overlay, "ConfigMap")["metadata"]["name"]: document(overlay, "ConfigMap")["data"]}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}  # pod.go, SetContainerTokenAuthEnvVars
    return Cluster(folder, network, given.get("config_maps", maps), given.get("secrets", {}), DEMO_IMAGE, token)


def ray_start(pod: Pod, head: str | None) -> list[str]:
    """KubeRay's command of a Ray node: pod.go, setMissingRayStartParams and generateRayStartCommand."""
    limits = pod.spec["containers"][0]["resources"]["limits"]
    parameters = {
        "num-cpus": f"{in_cores(limits['cpu']):.0f}",
        "memory": str(in_bytes(limits["memory"])),
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
    } | pod.group["rayStartParams"]
    if "nvidia.com/gpu" in limits:
        parameters.setdefault("num-gpus", limits["nvidia.com/gpu"])
    role = f"--address={head}:6379" if head else "--head"
    flags = " ".join(f"--{name}={value}" for name, value in parameters.items())
    return ["/bin/bash", "-c", f"ulimit -n 65536; ray start {role} {flags} --block"]


def submit(entrypoint: str, head: str, submission_id: str) -> list[str]:
    """KubeRay's command of the submitter: job.go, BuildJobSubmitCommand, for K8sJobMode."""
    at = f"--address http://{head}:8265"
    healthy = f"urllib.request.urlopen('http://{head}:8265/api/gcs_healthz', timeout=10).read()"
    script = f"""
        until python -c "import urllib.request; exit(b'success' not in {healthy})" >/dev/null 2>&1; do sleep 2; done
        if ! ray job status {at} {submission_id} >/dev/null 2>&1 ; then
        ray job submit {at} --no-wait --submission-id {submission_id} -- {entrypoint} ; fi ;
        ray job logs {at} --follow {submission_id}
    """
    return ["/bin/bash", "-ce", script]


def _await_nodes(head: Running, nodes: int) -> None:
    """Until that many nodes have joined. KubeRay submits a job once all pods are ready."""
    count = "import ray; ray.init('auto', log_to_driver=False, logging_level='ERROR'); print(len(ray.nodes()))"
    for _ in range(40):
        answer = head.execute("python", "-c", count)
        if answer.stdout.strip() == str(nodes):
            return
    raise AssertionError(answer.stderr + head.log.read_text())


def _submit(cluster: Cluster, head: Running, submitter: Pod, entrypoint: str) -> str:
    """Submits the entrypoint and follows it; its log, once Ray says that the job has succeeded."""
    name = "rayscribe-backfill-x2x7b"
    with cluster.run(submitter, submit(entrypoint, head.address, name)) as running:
        code = running.process.wait(TIMEOUT_S)
    log = running.log.read_text()
    status = head.execute("ray", "job", "status", "--address", "http://127.0.0.1:8265", name)
    assert (code, "succeeded" in status.stdout) == (0, True), log
    return log


def test_the_backfill_of_overlays_cpu(network: Network, tmp_path: Path) -> None:
    cluster = _cluster(network, tmp_path, "overlays/cpu/job")
    by_name = {pod.name: pod for pod in pods("overlays/cpu/job")}
    job = document("overlays/cpu/job", "RayJob")["spec"]
    with (
        cluster.run(by_name["head"], ray_start(by_name["head"], None)) as head,
        cluster.run(by_name["workers"], ray_start(by_name["workers"], head.address)) as worker,
    ):
        _await_nodes(head, 2)
        assert "2 failed" in _submit(cluster, head, by_name["submitter"], job["entrypoint"])
        shown = head.execute("rayscribe", "evaluate", "/data/transcripts")
        assert shown.returncode == 0, shown.stderr
        assert worker.process.poll() is None
    done = Output(str(tmp_path / "rayscribe-data" / "transcripts"), Storage()).deduplicate().attempts
    assert set(done["failed"]) == BROKEN
    assert set(done["ok"]) == {row["id"] for row in SAMPLES} - BROKEN
