"""k8s/: manifests valid for KubeRay and Serve, free of what the operator refuses; the job's command runs as written."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import rayscribe
from pipelines.job import Job
from tests.conftest import S3
from tests.test_packaging import PACKAGES

ROOT = Path(__file__).parent.parent
RAY_JOB = ROOT / "k8s" / "rayjob.yaml"
RAY_SERVICE = ROOT / "k8s" / "rayservice.yaml"
NGINX = ROOT / "k8s" / "nginx.conf"
CHECKER = ROOT.parent / "shared" / "crds" / "validate.py"  # KubeRay's own schemas, beside the repository
MODEL = ROOT / "demo" / "model"
MOUNTED = "/etc/rayscribe/job.yaml"


@pytest.fixture(scope="module")
def config_map() -> dict[str, Any]:
    return _document(RAY_JOB, "ConfigMap")


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    spec: dict[str, Any] = _document(RAY_JOB, "RayJob")["spec"]
    return spec


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    spec: dict[str, Any] = _document(RAY_SERVICE, "RayService")["spec"]
    return spec


@pytest.fixture(params=["job", "service"])
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The Ray cluster of either manifest."""
    spec: dict[str, Any] = request.getfixturevalue(request.param)
    found: dict[str, Any] = spec["rayClusterSpec" if request.param == "job" else "rayClusterConfig"]
    return found


def _document(manifest: Path, kind: str) -> dict[str, Any]:
    [found] = [each for each in yaml.safe_load_all(manifest.read_text()) if each["kind"] == kind]
    document: dict[str, Any] = found
    return document


def _pods(cluster: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each group with its pod."""
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group, group["template"]["spec"]


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMGT]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << 10 * ("KMGT".index(unit[0]) + 1)


@pytest.mark.skipif(not CHECKER.exists(), reason="KubeRay's schemas are not beside this repository")
def test_they_are_valid_for_kuberay_without_an_unknown_field() -> None:
    manifests = [str(RAY_JOB), str(RAY_SERVICE)]
    checked = subprocess.run([sys.executable, str(CHECKER), *manifests], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert "2 ray.io documents checked, 0 errors" in checked.stdout


# Rules that the operator has and the schemas cannot say.


def test_what_excludes_each_other_is_not_together(job: dict[str, Any]) -> None:
    ends_itself = {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & job.keys()
    assert not (ends_itself and "deletionStrategy" in job)
    assert job["shutdownAfterJobFinishes"]
    assert not (job.get("suspend") and not job["shutdownAfterJobFinishes"])
    assert job["backoffLimit"] >= 1  # each on a new cluster, which continues
    assert "clusterSelector" not in job
    mode = job.get("submissionMode", "K8sJobMode")
    assert mode != "InteractiveMode"
    assert not (mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & job.keys())


def test_what_the_autoscaler_asks_for(cluster: dict[str, Any]) -> None:
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    for group, pod in _pods(cluster):
        assert pod.get("restartPolicy", "Never") == "Never"
        assert "labels" not in group.get("rayStartParams", {})
        assert not (group.get("resources") and {"num-cpus", "num-gpus", "resources"} & group["rayStartParams"].keys())
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_ray_is_the_one_that_is_installed_and_listens_to_nobody_else(cluster: dict[str, Any]) -> None:
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}


# What a pod needs.


def test_every_pod_has_the_credentials_from_the_secret_and_nowhere_else(job: dict[str, Any]) -> None:
    for _, pod in _pods(job["rayClusterSpec"]):
        [container] = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "rayscribe-storage"}}]
        assert "env" not in container
    assert not re.search(r"AWS_|AKIA|secret_?key", RAY_JOB.read_text(), re.IGNORECASE)


def test_every_pod_has_limits_shared_memory_and_no_privileges(cluster: dict[str, Any]) -> None:
    for _, pod in _pods(cluster):
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        resources = container["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        [shared] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        assert shared["medium"] == "Memory"
        assert _bytes(shared["sizeLimit"]) < _bytes(resources["limits"]["memory"]) / 2
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted["shm"] == "/dev/shm"
        assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}


def test_the_plan_has_the_actors_that_the_pods_hold(job: dict[str, Any], config_map: dict[str, Any]) -> None:
    told = yaml.safe_load(config_map["data"]["job.yaml"])
    listeners, engines = job["rayClusterSpec"]["workerGroupSpecs"]
    limits = {group["groupName"]: _limits(group) for group in (listeners, engines)}
    assert told["engines"] == engines["replicas"] * int(limits["engines"]["nvidia.com/gpu"])
    assert told["listeners"] == listeners["maxReplicas"] * int(limits["listeners"]["cpu"])
    assert engines["minReplicas"] == engines["maxReplicas"]  # the GPUs are counted when the job begins
    assert "nvidia.com/gpu" not in limits["listeners"]
    assert job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def _limits(group: dict[str, Any]) -> dict[str, str]:
    limits: dict[str, str] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return limits


def test_the_image_is_built_as_the_readme_says(cluster: dict[str, Any]) -> None:
    [image] = {pod["containers"][0]["image"] for _, pod in _pods(cluster)}
    assert f"docker build -f k8s/Dockerfile -t {image} ." in (ROOT / "k8s" / "README.md").read_text()
    assert image.endswith(f":{version('rayscribe')}")
    lines = (ROOT / "k8s" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000"]
    copied = {path for line in lines if line.startswith("COPY ") for path in line.split()[1:-1]}
    assert {"rayscribe.py", "pyproject.toml", *PACKAGES, "k8s/requirements-${BUILD}.txt"} <= copied
    assert "ARG BUILD=gpu" in lines
    copied = {path.replace("${BUILD}", build) for path in copied for build in ("gpu", "cpu")}
    assert all((ROOT / path).exists() for path in copied)


# The service.


@pytest.fixture(scope="module")
def serve_config(service: dict[str, Any]) -> Any:
    """serveConfigV2, as Serve itself reads it."""
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))


def test_serve_reads_its_config_and_builds_the_application(serve_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster whose nodes have not come yet: the head has no CPUs."""
    from ray._common.utils import import_attr
    from ray.serve._private.build_app import build_app

    from cluster import session
    from cluster.nodes import Node
    from serve.settings import ServeSettings

    [application] = serve_config.applications
    monkeypatch.setattr(session, "cluster_nodes", lambda: [Node(cpus=0, head=True, memory_gib=8)])
    settings = ServeSettings.from_settings(application.args)
    built = build_app(import_attr(application.import_path)(settings), name=application.name, default_runtime_env={})
    deployments = {deployment.name: deployment for deployment in built.deployments}
    assert {told.name for told in application.deployments} <= deployments.keys()
    engines = deployments["Transcriber"]._deployment_config.autoscaling_config
    assert (engines.min_replicas, engines.max_replicas) == (settings.min_engines, settings.cluster.engines)


def test_only_who_has_a_key_is_answered(service: dict[str, Any], serve_config: Any) -> None:
    from serve.settings import ServeSettings

    settings = ServeSettings.from_settings(serve_config.applications[0].args)
    assert settings.host == serve_config.http_options.host == "0.0.0.0"
    assert settings.api_keys == "/etc/rayscribe/keys"
    listeners = service["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    [keys] = [volume["secret"]["secretName"] for volume in listeners["volumes"] if volume["name"] == "keys"]
    mounted = {mount["name"]: mount for mount in listeners["containers"][0]["volumeMounts"]}
    assert mounted["keys"] == {"name": "keys", "mountPath": "/etc/rayscribe", "readOnly": True}
    told = (ROOT / "k8s" / "README.md").read_text()
    assert f"kubectl create secret generic {keys} --from-file=keys=" in told


def test_the_service_asks_for_what_its_pods_hold(service: dict[str, Any], serve_config: Any) -> None:
    [application] = serve_config.applications
    head, (listeners, engines) = _groups(service["rayClusterConfig"])
    told = {deployment.name: deployment for deployment in application.deployments}
    endpoints = told["Endpoint"].num_replicas
    assert told["Endpoint"].ray_actor_options.num_cpus == 1  # where there are CPUs there are the keys, too
    assert (told["Transcriber"].ray_actor_options.num_gpus, told["Transcriber"].ray_actor_options.num_cpus) == (1, 0)
    assert application.args["engines"] == engines["maxReplicas"] * int(_limits(engines)["nvidia.com/gpu"])
    assert application.args["min_engines"] >= engines["minReplicas"]  # else a GPU is kept for nobody
    assert application.args["listeners"] == listeners["maxReplicas"] * int(_limits(listeners)["cpu"]) - endpoints
    assert listeners["minReplicas"] >= 1  # the Endpoints are always there
    for group in (head, engines):
        assert group["rayStartParams"]["num-cpus"] == "0"


def test_an_upgrade_lets_requests_finish(service: dict[str, Any], serve_config: Any) -> None:
    from serve.settings import ServeSettings

    settings = ServeSettings.from_settings(serve_config.applications[0].args)
    assert service["upgradeStrategy"] == {"type": "NewCluster"}
    assert service["rayClusterDeletionDelaySeconds"] >= settings.drain_s


def _groups(cluster: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return cluster["headGroupSpec"], cluster["workerGroupSpecs"]


# The job's command.


def test_its_options_are_options(job: dict[str, Any], config_map: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(config_map["data"]["job.yaml"])
    command, told = job["entrypoint"].split(" || ")
    program, *arguments = shlex.split(command.replace(MOUNTED, str(path)))
    parsed = rayscribe._parser().parse_args(arguments)
    asked = Job.from_settings(rayscribe._settings(parsed, Job))
    assert program == "rayscribe"
    assert (asked.manifest, asked.cluster.address) == ("s3://calls/manifest.jsonl", "auto")
    assert told == f"[ $? -eq {rayscribe.EXIT_SOME_FAILED} ]"


@pytest.mark.parametrize(("code", "as_told"), [(0, 0), (1, 1), (2, 1), (3, 0)])
def test_only_a_run_that_did_not_finish_is_tried_again(job: dict[str, Any], code: int, as_told: int) -> None:
    _, _, told = job["entrypoint"].partition("||")
    assert subprocess.run(["sh", "-c", f"(exit {code}) || {told}"]).returncode == as_told


@pytest.mark.engine
@pytest.mark.ray
def test_the_command_runs_as_written(job: dict[str, Any], s3: S3, tmp_path: Path) -> None:
    """On a Ray cluster of its own, with another job.yaml in the ConfigMap's place; credentials from the environment."""
    from pipelines.output import Output
    from storage.filesystem import Storage

    storage = Storage(s3.options)
    audio = (ROOT / "testing" / "data" / "agent.flac").read_bytes()
    storage.write_bytes(f"{s3.bucket}/agent.flac", audio)
    rows = [{"audio": "agent.flac", "id": "there"}, {"audio": "gone.flac", "id": "gone"}]
    storage.write_bytes(f"{s3.bucket}/manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    told = {"manifest": f"{s3.bucket}/manifest.jsonl", "output": f"{s3.bucket}/out", "model": str(MODEL)}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(told | {"engine": "transformers", "engines": 1, "listeners": 1}))

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": s3.endpoint,
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_AUTH_MODE": "disabled",
    }
    ray_here = Path("/tmp") / f"rs{port}"  # sockets' paths must be short
    start = f"ray start --head --port {port} --num-cpus 6 --temp-dir {ray_here} --include-dashboard false --block"
    head = subprocess.Popen(shlex.split(start), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_ray(port, environment)
        command = job["entrypoint"].replace(MOUNTED, str(path))
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=400)
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(ray_here, ignore_errors=True)
    assert done.returncode == 0, done.stderr  # one has failed, and that is no reason to run again
    standing = Output(f"{s3.bucket}/out", storage).deduplicate().attempts
    assert standing == {"ok": {"there": 1}, "failed": {"gone": 1}}


def _await_ray(port: int, environment: dict[str, str]) -> None:
    check = ["ray", "health-check", "--address", f"127.0.0.1:{port}"]
    for _ in range(60):
        if subprocess.run(check, env=environment, capture_output=True).returncode == 0:
            return
    raise AssertionError("Ray has not started")


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    config = tmp_path / "nginx.conf"
    text = NGINX.read_text()
    assert "rayscribe-serve-svc:8000" in text
    config.write_text(
        text.replace("rayscribe-serve-svc", "127.0.0.1")
    )  # the service's name resolves in its cluster only
    files = f"pid {tmp_path}/nginx.pid; error_log stderr;"  # a user may not write to those of the system
    checked = subprocess.run(["nginx", "-t", "-c", config, "-g", files], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
