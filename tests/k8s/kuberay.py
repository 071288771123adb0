"""What KubeRay (1.7) does with the pods of an overlay: the commands that it runs in them, and what it asks Ray for.

Read off its operator's source: ray-operator/controllers/ray/common/{pod,job}.go.
"""

import textwrap
from pathlib import Path

from tests.k8s.pod_runner import Cluster, Network, Running
from tests.k8s.rendered import ROOT, Pod, in_bytes, in_cores, render

# What docker build --target demo puts into the image.
DEMO_IMAGE = {"/opt/demo/model": ROOT / "demo" / "model", "/opt/demo/samples": ROOT / "demo" / "samples"}
TOKEN = "0123456789abcdef" * 4
TIMEOUT_S = 420.0
# Deploys serveConfigV2 as KubeRay does, by the dashboard's REST API; prints the application's state once it is settled.
DEPLOY = textwrap.dedent("""
    import sys, time, yaml
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    client = ServeSubmissionClient("http://127.0.0.1:8265")
    client.deploy_applications(yaml.safe_load(sys.argv[1]))
    for _ in range(300):
        [application] = client.get_serve_details()["applications"].values()
        if application["status"] in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY"):
            break
        time.sleep(1)
    print(application["status"], application["message"])
""")


def cluster_of(network: Network, folder: Path, overlay: str, **given: dict[str, dict[str, str]]) -> Cluster:
    """What the pods of an overlay share, with its ConfigMaps, or those that are given."""
    maps = {each["metadata"]["name"]: each["data"] for each in render(overlay) if each["kind"] == "ConfigMap"}
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


def await_nodes(head: Running, nodes: int) -> None:
    """Until that many nodes have joined. KubeRay submits a job once all pods are ready."""
    count = "import ray; ray.init('auto', log_to_driver=False, logging_level='ERROR'); print(len(ray.nodes()))"
    for _ in range(40):
        answer = head.execute("python", "-c", count)
        if answer.stdout.strip() == str(nodes):
            return
    raise AssertionError(answer.stderr + head.log.read_text())


def deploy(head: Running, config: str) -> None:
    """Returns when the endpoint runs."""
    deployed = head.execute("python", "-c", DEPLOY, config, timeout_s=TIMEOUT_S)
    assert deployed.stdout.startswith("RUNNING"), deployed.stdout + deployed.stderr
