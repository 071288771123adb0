"""k8s/: every overlay is rendered by kustomize, and valid for Kubernetes, KubeRay and Serve.

KubeRay's schemas are those of its CRDs, where they are beside this repository; the rules that its operator has besides
are here, read off ray-operator/controllers/ray/utils/validation.go (1.7).
"""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import rayscribe
from cluster.nodes import Node, plan_layout
from cluster.settings import ClusterConfig
from pipelines.job import Job
from tests.k8s.rendered import (
    FOLDERS,
    K8S,
    OVERLAYS,
    ROOT,
    Pod,
    document,
    in_bytes,
    in_cores,
    pods,
    ray_cluster,
    render,
)

CHECKER = ROOT.parent / "shared" / "crds" / "validate.py"
MOUNTED = "/etc/rayscribe/job.yaml"
KUBERNETES = "1.37"  # the schemas that kubernetes-validate has
JOBS = [each for each in OVERLAYS if any(document["kind"] == "RayJob" for document in render(each))]
SERVICES = [each for each in OVERLAYS if each.endswith("/service")]
NIGHTLY = [each for each in OVERLAYS if each.endswith("/nightly")]
CUSTOM = {"ray.io/v1", "monitoring.coreos.com/v1"}
ZEROS = "0" * 64


def _pod(overlay: str, name: str) -> Pod:
    [found] = [pod for pod in pods(overlay) if pod.name == name]
    return found


def _limit(pod: Pod, what: str) -> str:
    found: str = pod.spec["containers"][0]["resources"]["limits"].get(what, "0")
    return found


def test_there_is_an_overlay_for_each_face_and_size() -> None:
    sizes, faces = ("small", "production", "cpu"), ("job", "service", "nightly")
    each = {f"overlays/{size}/{face}" for size in sizes for face in faces}
    assert {*OVERLAYS} == each | {"overlays/production/kueue"}


def test_every_component_and_base_is_in_an_overlay() -> None:
    folders = [path.parent for path in K8S.rglob("kustomization.yaml")]
    used = {
        (folder / other).resolve()
        for folder in folders
        for entry in (yaml.safe_load((folder / "kustomization.yaml").read_text()),)
        for other in [*entry.get("resources", []), *entry.get("components", [])]
    }
    assert {str(folder.relative_to(K8S)) for folder in folders if folder not in used} == {*FOLDERS}


# Schemas.


@pytest.mark.parametrize("folder", FOLDERS)
def test_kinds_of_kubernetes_are_valid_without_an_unknown_field(folder: str) -> None:
    for each in [*render(folder), yaml.safe_load((K8S / "namespace.yaml").read_text())]:
        if each["apiVersion"] not in CUSTOM:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_are_valid_without_an_unknown_field(folder: str) -> None:
    """Ray's, too, with what KubeRay adds: KubeRay's own schema of pods is an older one."""
    for pod in pods(folder):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name}, "spec": pod.spec}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)
        assert {mount["name"] for each in pod.containers for mount in each["volumeMounts"]} == {
            volume["name"] for volume in pod.spec["volumes"]
        }


@pytest.mark.skipif(not CHECKER.exists(), reason="KubeRay's schemas are not beside this repository")
def test_kuberays_kinds_are_valid_without_an_unknown_field(tmp_path: Path) -> None:
    manifests = []
    for overlay in [*JOBS, *SERVICES]:
        manifests.append(tmp_path / f"{overlay.replace('/', '-')}.yaml")
        manifests[-1].write_text(yaml.safe_dump_all(render(overlay)))
    checked = subprocess.run([sys.executable, str(CHECKER), *manifests], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert f"{len(manifests)} ray.io documents checked, 0 errors" in checked.stdout


# Rules that the operator has and the schemas cannot say.


@pytest.mark.parametrize("overlay", JOBS)
def test_what_excludes_each_other_is_not_together(overlay: str) -> None:
    job = document(overlay, "RayJob")["spec"]
    ends_itself = {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & job.keys()
    assert not (ends_itself and "deletionStrategy" in job)
    assert job["shutdownAfterJobFinishes"]
    assert job["backoffLimit"] >= 1  # each on a new cluster, which continues
    assert "clusterSelector" not in job
    assert job.get("submissionMode", "K8sJobMode") == "K8sJobMode"  # the others take no template of the submitter


@pytest.mark.parametrize("overlay", [*JOBS, *SERVICES])
def test_what_the_autoscaler_asks_for(overlay: str) -> None:
    cluster = ray_cluster(overlay)
    for pod in pods(overlay):
        assert pod.spec["restartPolicy"] == "Never"
        assert all(isinstance(value, str) for value in pod.group.get("rayStartParams", {}).values())
        assert "labels" not in pod.group.get("rayStartParams", {})
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        scales = group["minReplicas"] != group["maxReplicas"]
        assert not scales or cluster["enableInTreeAutoscaling"]
    if cluster.get("enableInTreeAutoscaling"):
        assert cluster["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("overlay", [*JOBS, *SERVICES])
def test_ray_is_the_one_that_is_installed_and_listens_to_nobody_else(overlay: str) -> None:
    cluster = ray_cluster(overlay)
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}


def test_an_incremental_upgrade_is_one_that_kuberay_accepts() -> None:
    service = document("overlays/production/service", "RayService")["spec"]
    assert service["rayClusterConfig"]["enableInTreeAutoscaling"]
    assert service["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    options = service["upgradeStrategy"]["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert options["intervalSeconds"] > 0
    assert options["gatewayClassName"]


def test_a_queue_of_kueue_gets_a_job_that_waits_and_does_not_scale() -> None:
    job = document("overlays/production/kueue", "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"] is True
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    for each in JOBS:
        assert each == "overlays/production/kueue" or "suspend" not in document(each, "RayJob")["spec"]


@pytest.mark.parametrize("overlay", [each for each in OVERLAYS if each.startswith("overlays/production")])
def test_budgets_have_no_more_than_kubernetes_allows_for_pods_of_an_operator(overlay: str) -> None:
    """Only minAvailable, as a number; and each selects pods that are there."""
    labels = [
        pod.labels | {"ray.io/group": pod.name, "ray.io/node-type": "head" if pod.name == "head" else "worker"}
        for pod in pods(overlay)
    ]
    for budget in (each["spec"] for each in render(overlay) if each["kind"] == "PodDisruptionBudget"):
        assert type(budget["minAvailable"]) is int
        assert "maxUnavailable" not in budget
        assert any(budget["selector"]["matchLabels"].items() <= each.items() for each in labels)


@pytest.mark.parametrize("overlay", [each for each in (*JOBS, *SERVICES) if "/production/" in each])
def test_engines_are_on_spot_nodes_and_the_head_is_not(overlay: str) -> None:
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    by_name = {pod.name: pod for pod in pods(overlay)}
    head = by_name["head"].spec["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"]
    engines = by_name["engines"].spec["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"]
    kept_off = {(rule["key"], *rule["values"]) for rule in head[0]["matchExpressions"] if rule["operator"] == "NotIn"}
    [*sought] = [(rule["key"], *rule["values"]) for term in engines for rule in term["matchExpressions"]]
    assert len(head) == 1  # all of its rules; of the engines' terms one
    assert kept_off == {*sought}
    assert "affinity" not in by_name["listeners"].spec
    for name in ("head", "engines"):
        assert by_name[name].annotations["karpenter.sh/do-not-disrupt"] == "true"


def test_the_network_policy_selects_every_pod_and_opens_nothing_to_everybody() -> None:
    for overlay in (each for each in OVERLAYS if each.startswith("overlays/production")):
        policy = document(overlay, "NetworkPolicy")["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        for pod in pods(overlay):
            assert policy["podSelector"]["matchLabels"].items() <= pod.labels.items()
        assert all(rule["from"] for rule in policy["ingress"])
        addresses = [to["ipBlock"] for rule in policy["egress"] for to in rule["to"] if "ipBlock" in to]
        assert all("169.254.0.0/16" in each["except"] for each in addresses)


# Images.


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_image_is_named_in_one_place(folder: str) -> None:
    [image] = {container["image"] for pod in pods(folder) for container in pod.containers}
    if "production" in folder or folder == "weights":
        assert re.fullmatch(r"[\w./-]+@sha256:[0-9a-f]{64}", image)
        assert ZEROS in image  # none is published: the user's own takes its place
    else:
        assert image.endswith(f":{version('rayscribe')}")
        assert f"-t {image} ." in (K8S / "README.md").read_text()


# What a pod needs.


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_listeners_may_only_read_and_nobody_else_needs_credentials(overlay: str) -> None:
    sources = {
        pod.name: [each["secretRef"]["name"] for each in pod.spec["containers"][0].get("envFrom", [])]
        for pod in pods(overlay)
    }
    named = {name: found for name, found in sources.items() if found}
    if "/cpu/" in overlay or overlay.endswith("/service"):
        assert not named
    elif overlay in NIGHTLY:
        assert named == {"rayscribe-nightly": ["rayscribe-storage"]}
    else:
        both = ["rayscribe-storage"]
        assert named == {"head": both, "engines": both, "listeners": ["rayscribe-storage-read"]}


def test_no_credential_is_in_a_file() -> None:
    for path in K8S.rglob("*.yaml"):
        assert not re.search(r"AKIA|secret_?key\b|aws_", path.read_text(), re.IGNORECASE), path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shared_memory_fits_into_the_memory_of_its_pod(overlay: str) -> None:
    for pod in pods(overlay):
        shared = [volume["emptyDir"] for volume in pod.spec["volumes"] if volume["name"] == "shm"]
        if pod.name == "submitter":
            continue
        assert shared[0]["medium"] == "Memory"
        assert in_bytes(shared[0]["sizeLimit"]) <= in_bytes(_limit(pod, "memory")) / 2


@pytest.mark.parametrize("overlay", ["overlays/small/job", "overlays/production/job", "overlays/production/kueue"])
def test_engines_are_on_gpus_that_may_come_later(overlay: str) -> None:
    told = yaml.safe_load(document(overlay, "ConfigMap")["data"]["job.yaml"])
    listeners, engines = _pod(overlay, "listeners"), _pod(overlay, "engines")
    assert told["gpus_per_engine"] == 1  # without, a job that begins before its GPUs would run on CPUs
    assert not {"engines", "listeners"} & told.keys()  # as many as there is room for
    assert _limit(engines, "nvidia.com/gpu") == "1"
    assert _limit(listeners, "nvidia.com/gpu") == "0"
    assert _pod(overlay, "head").group["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_model_in_a_folder_is_mounted_or_in_the_image(overlay: str) -> None:
    """Driver, Listeners and engines read it; of the endpoint all but the head."""
    settings = _settings(overlay)
    if not settings["model"].startswith("/"):
        return
    if settings["model"].startswith("/opt/demo/"):
        assert "COPY demo/model /opt/demo/model" in (K8S / "Dockerfile").read_text()
        return
    for pod in pods(overlay):
        if pod.name == "submitter" or (overlay in SERVICES and pod.name == "head"):
            continue
        mounted = {mount["name"]: mount for mount in pod.spec["containers"][0]["volumeMounts"]}
        assert settings["model"].startswith(mounted["weights"]["mountPath"])
        assert mounted["weights"]["readOnly"]
        assert {"name": "HF_HUB_OFFLINE", "value": "1"} in pod.spec["containers"][0]["env"]


def test_the_weights_are_downloaded_to_where_they_are_sought() -> None:
    [download] = pods("weights")
    program, verb, model, folder = download.spec["containers"][0]["command"]
    assert (program, verb) == ("hf", "download")
    assert folder.removeprefix("--local-dir=") == _settings("overlays/production/job")["model"]
    assert model == _settings("overlays/small/job")["model"]
    help_text = subprocess.run(
        [Path(sys.executable).parent / "hf", "download", "--help"], capture_output=True, text=True, check=True
    )
    assert "--local-dir" in help_text.stdout


def _settings(overlay: str) -> dict[str, Any]:
    """The options of rayscribe that an overlay gives."""
    if overlay in SERVICES:
        config = yaml.safe_load(document(overlay, "RayService")["spec"]["serveConfigV2"])
        return dict(config["applications"][0]["args"])
    return dict(yaml.safe_load(document(overlay, "ConfigMap")["data"]["job.yaml"]))


# The service.


def _serve_config(overlay: str) -> Any:
    """serveConfigV2, as Serve itself reads it."""
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema.model_validate(yaml.safe_load(document(overlay, "RayService")["spec"]["serveConfigV2"]))


@pytest.mark.parametrize("overlay", SERVICES)
def test_serve_reads_its_config_and_builds_the_application(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster whose nodes have not come yet: the head has no CPUs."""
    from ray._common.utils import import_attr
    from ray.serve._private.build_app import build_app

    from cluster import session
    from cluster.nodes import Node
    from serve.settings import ServeSettings

    [application] = _serve_config(overlay).applications
    monkeypatch.setattr(session, "cluster_nodes", lambda: [Node(cpus=0, head=True, memory_gib=8)])
    args = application.args | {"model": str(ROOT / "demo" / "model")}  # the one that is here
    settings = ServeSettings.from_settings(args)
    built = build_app(import_attr(application.import_path)(settings), name=application.name, default_runtime_env={})
    deployments = {deployment.name: deployment for deployment in built.deployments}
    assert {told.name for told in application.deployments} <= deployments.keys()
    engines = deployments["Transcriber"]._deployment_config.autoscaling_config
    if engines is not None:
        assert (engines.min_replicas, engines.max_replicas) == (settings.min_engines, settings.cluster.engines)


@pytest.mark.parametrize("overlay", SERVICES)
def test_only_who_has_a_key_is_answered(overlay: str) -> None:
    from serve.settings import ServeSettings

    config = _serve_config(overlay)
    settings = ServeSettings.from_settings(config.applications[0].args)
    assert settings.host == config.http_options.host == "0.0.0.0"
    assert settings.api_keys == "/etc/rayscribe/keys"
    endpoint = next(pod for pod in pods(overlay) if pod.name in ("listeners", "workers"))
    [secret] = [volume["secret"]["secretName"] for volume in endpoint.spec["volumes"] if volume["name"] == "keys"]
    mounted = {mount["name"]: mount for mount in endpoint.spec["containers"][0]["volumeMounts"]}
    assert mounted["keys"] == {"name": "keys", "mountPath": "/etc/rayscribe", "readOnly": True}
    told = (K8S / "README.md").read_text()
    assert f"kubectl create secret generic {secret} --from-file=keys=" in told


@pytest.mark.parametrize("overlay", ["overlays/small/service", "overlays/production/service"])
def test_the_service_asks_for_what_its_pods_hold(overlay: str) -> None:
    [application] = _serve_config(overlay).applications
    listeners, engines = _pod(overlay, "listeners"), _pod(overlay, "engines")
    told = {deployment.name: deployment for deployment in application.deployments}
    endpoints = told["Endpoint"].num_replicas
    assert told["Endpoint"].ray_actor_options.num_cpus == 1  # where there are CPUs there are the keys, too
    where = {name: application.args[name] for name in ClusterConfig.model_fields if name in application.args}
    layout = plan_layout([Node(cpus=0, head=True)], ClusterConfig(**where | {"address": "auto"}))
    assert (layout.gpus_per_engine, layout.cpus_per_engine) == (1, 0)  # before any pod but the head's is there
    assert application.args["engines"] == engines.group["maxReplicas"] * int(_limit(engines, "nvidia.com/gpu"))
    assert application.args["min_engines"] >= engines.group["minReplicas"]  # else a GPU is kept for nobody
    cpus = listeners.group["maxReplicas"] * in_cores(_limit(listeners, "cpu"))
    assert application.args["listeners"] == cpus - endpoints
    assert listeners.group["minReplicas"] >= 1  # the Endpoints are always there
    for name in ("head", "engines"):
        assert _pod(overlay, name).group["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("overlay", SERVICES)
def test_an_upgrade_lets_requests_finish(overlay: str) -> None:
    from serve.settings import ServeSettings

    settings = ServeSettings.from_settings(_serve_config(overlay).applications[0].args)
    service = document(overlay, "RayService")["spec"]
    assert service["rayClusterDeletionDelaySeconds"] >= settings.drain_s


# The commands.


@pytest.mark.parametrize("overlay", [*JOBS, *NIGHTLY])
def test_options_are_options(overlay: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(document(overlay, "ConfigMap")["data"]["job.yaml"])
    if overlay in JOBS:
        entrypoint = document(overlay, "RayJob")["spec"]["entrypoint"]
        # A shell of the submitter's reads it, which then quotes it for one of the head's.
        assert re.fullmatch(r"[\w ./-]+", entrypoint)
        command = shlex.split(entrypoint)
    else:
        command = _pod(overlay, "rayscribe-nightly").spec["containers"][0]["command"]
    program, *arguments = [str(path) if word == MOUNTED else word for word in command]
    asked = Job.from_settings(rayscribe._settings(rayscribe._parser().parse_args(arguments), Job))
    assert program == "rayscribe"
    assert asked.accept_failed  # else some failed recordings would be a reason to run again
    assert asked.cluster.address == ("auto" if overlay in JOBS else None)


# Monitoring.


def test_what_is_monitored_is_exported_by_pods_that_are_selected() -> None:
    monitor = document("overlays/production/service", "PodMonitor")["spec"]
    assert monitor["podMetricsEndpoints"] == [{"port": "metrics"}]  # KubeRay's name of port 8080
    for overlay in ("overlays/production/job", "overlays/production/service"):
        for pod in pods(overlay):
            labels = pod.labels | ({"ray.io/is-ray-node": "yes"} if pod.group else {})
            assert (monitor["selector"]["matchLabels"].items() <= labels.items()) == bool(pod.group)


def test_every_metric_of_an_alert_is_exported() -> None:
    from tests.serve.test_grafana import our_metrics, ray_metrics

    rules = document("overlays/production/job", "PrometheusRule")["spec"]
    asked = set(re.findall(r"\bray_\w+", yaml.safe_dump(rules)))
    assert asked - ray_metrics() <= our_metrics()
    codes = set(re.findall(r"\w+", " ".join(re.findall(r'code=~?"([^"]+)"', yaml.safe_dump(rules, width=10_000)))))
    assert codes <= _error_codes()


def _error_codes() -> set[str]:
    """Every string constant of the packages that name error codes."""
    sources = [*(ROOT / "serve").rglob("*.py"), *(ROOT / "speech").rglob("*.py")]
    return {
        node.value
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_alerts_are_valid_for_prometheus(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(document("overlays/production/job", "PrometheusRule")["spec"]))
    checked = subprocess.run(["promtool", "check", "rules", str(rules)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr + checked.stdout


@pytest.mark.parametrize("overlay", [*JOBS, *SERVICES])
def test_ray_ends_its_drain_before_kubernetes_ends_the_pod(overlay: str) -> None:
    for group in (each for each in pods(overlay) if each.name in ("listeners", "engines", "workers")):
        told = {each["name"]: each["value"] for each in group.spec["containers"][0]["env"]}
        assert 30 < float(told["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < group.spec["terminationGracePeriodSeconds"]
