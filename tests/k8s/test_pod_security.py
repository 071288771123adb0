"""Every pod of every overlay is allowed by Pod Security's level "restricted".

The rules are those of https://kubernetes.io/docs/concepts/security/pod-security-standards/ as of Kubernetes 1.37: each
a name and a function from a pod to what is against it. KubeRay's own containers (autoscaler, submitter, wait-gcs-ready)
are in the pods.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import yaml

from tests.k8s.rendered import FOLDERS, K8S, Pod, pods

PODS = [pytest.param(pod, id=f"{folder}/{pod.name}") for folder in FOLDERS for pod in pods(folder)]
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = {"RuntimeDefault", "Localhost"}


def _context(holder: dict[str, Any]) -> dict[str, Any]:
    return holder.get("securityContext") or {}


def _each(pod: Pod, wrong: Callable[[dict[str, Any]], Any]) -> list[str]:
    """The containers of which something is wrong."""
    return [container["name"] for container in pod.containers if wrong(container)]


def _contexts(pod: Pod) -> list[dict[str, Any]]:
    return [_context(pod.spec), *map(_context, pod.containers)]


def _effective(pod: Pod, container: dict[str, Any], field: str) -> Any:
    """A container's own value, else the pod's."""
    return _context(container).get(field, _context(pod.spec).get(field))


def _handlers(container: dict[str, Any]) -> Iterator[dict[str, Any]]:
    hooks = container.get("lifecycle", {})
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        yield container.get(probe, {})
    yield from (hooks.get("postStart", {}), hooks.get("preStop", {}))


def _named_hosts(container: dict[str, Any]) -> Iterable[str]:
    for handler in _handlers(container):
        yield from (handler[kind]["host"] for kind in ("httpGet", "tcpSocket") if "host" in handler.get(kind, {}))


RULES: dict[str, Callable[[Pod], Any]] = {
    # Baseline.
    "HostProcess": lambda pod: [
        each for each in _contexts(pod) if each.get("windowsOptions", {}).get("hostProcess", False)
    ],
    "Host Namespaces": lambda pod: {"hostNetwork", "hostPID", "hostIPC"} & {k for k, v in pod.spec.items() if v},
    "Privileged Containers": lambda pod: _each(pod, lambda each: _context(each).get("privileged")),
    "HostPath Volumes": lambda pod: [each for each in pod.spec.get("volumes", []) if "hostPath" in each],
    "Host Ports": lambda pod: _each(pod, lambda each: any(port.get("hostPort") for port in each.get("ports", []))),
    "Host Probes / Lifecycle Hooks": lambda pod: _each(pod, lambda each: any(_named_hosts(each))),
    "AppArmor": lambda pod: [
        each for each in _contexts(pod) if each.get("appArmorProfile", {}).get("type") == "Unconfined"
    ],
    "SELinux": lambda pod: [
        each
        for each in (context.get("seLinuxOptions", {}) for context in _contexts(pod))
        if each.get("type") not in SELINUX_TYPES or each.get("user") or each.get("role")
    ],
    "/proc Mount Type": lambda pod: _each(pod, lambda each: _context(each).get("procMount", "Default") != "Default"),
    "Sysctls": lambda pod: {each["name"] for each in _context(pod.spec).get("sysctls", [])} - SAFE_SYSCTLS,
    # Restricted.
    "Volume Types": lambda pod: [
        each["name"] for each in pod.spec.get("volumes", []) if not (each.keys() - {"name"}) <= VOLUMES
    ],
    "Privilege Escalation": lambda pod: _each(
        pod, lambda each: _context(each).get("allowPrivilegeEscalation") is not False
    ),
    "Running as Non-root": lambda pod: _each(pod, lambda each: _effective(pod, each, "runAsNonRoot") is not True),
    "Running as Non-root user": lambda pod: [each for each in _contexts(pod) if each.get("runAsUser") == 0],
    "Seccomp": lambda pod: _each(
        pod, lambda each: (_effective(pod, each, "seccompProfile") or {}).get("type") not in PROFILES
    ),
    "Capabilities": lambda pod: _each(
        pod,
        lambda each: (
            "ALL" not in _context(each).get("capabilities", {}).get("drop", [])
            or not set(_context(each)["capabilities"].get("add", [])) <= {"NET_BIND_SERVICE"}
        ),
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pod", PODS)
def test_restricted(pod: Pod, rule: str) -> None:
    assert not RULES[rule](pod)


def _allowed() -> Pod:
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    own = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"securityContext": own, "containers": [{"name": "one", "securityContext": context}], "volumes": []}
    return Pod("allowed", {}, {}, spec, {})


BREACHES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("HostProcess", lambda spec: spec["securityContext"].update(windowsOptions={"hostProcess": True})),
    ("Host Namespaces", lambda spec: spec.update(hostNetwork=True)),
    ("Privileged Containers", lambda spec: spec["containers"][0]["securityContext"].update(privileged=True)),
    ("HostPath Volumes", lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    ("Host Ports", lambda spec: spec["containers"][0].update(ports=[{"containerPort": 1, "hostPort": 1}])),
    (
        "Host Probes / Lifecycle Hooks",
        lambda spec: spec["containers"][0].update(livenessProbe={"httpGet": {"host": "10.0.0.1"}}),
    ),
    ("AppArmor", lambda spec: spec["securityContext"].update(appArmorProfile={"type": "Unconfined"})),
    ("SELinux", lambda spec: spec["securityContext"].update(seLinuxOptions={"type": "spc_t"})),
    ("/proc Mount Type", lambda spec: spec["containers"][0]["securityContext"].update(procMount="Unmasked")),
    ("Sysctls", lambda spec: spec["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}])),
    ("Volume Types", lambda spec: spec["volumes"].append({"name": "x", "nfs": {"server": "x", "path": "/"}})),
    ("Privilege Escalation", lambda spec: spec["containers"][0]["securityContext"].pop("allowPrivilegeEscalation")),
    ("Running as Non-root", lambda spec: spec["containers"][0]["securityContext"].update(runAsNonRoot=False)),
    ("Running as Non-root user", lambda spec: spec["securityContext"].update(runAsUser=0)),
    ("Seccomp", lambda spec: spec["securityContext"].pop("seccompProfile")),
    ("Capabilities", lambda spec: spec["containers"][0]["securityContext"]["capabilities"].update(add=["NET_RAW"])),
]


@pytest.mark.parametrize(("rule", "breach"), BREACHES)
def test_each_rule_finds_its_breach_alone(rule: str, breach: Callable[[dict[str, Any]], Any]) -> None:
    pod = _allowed()
    assert not any(found(pod) for found in RULES.values())
    breach(pod.spec)
    against = {name for name, found in RULES.items() if found(pod)}
    assert rule in against
    assert against - {rule} <= {"Volume Types"}  # which hostPath is also against


def test_every_rule_has_a_breach() -> None:
    assert {rule for rule, _ in BREACHES} == RULES.keys()


def test_the_namespace_is_held_to_it() -> None:
    namespace = yaml.safe_load((K8S / "namespace.yaml").read_text())
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


# Beyond the standard.


@pytest.mark.parametrize("pod", PODS)
def test_nothing_is_written_but_to_volumes(pod: Pod) -> None:
    for container in pod.containers:
        assert _context(container)["readOnlyRootFilesystem"] is True
        mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert "/tmp" in mounted
        for path in ("/tmp", "/home/ray", "/dev/shm"):
            assert not mounted.get(path, {}).get("readOnly")


@pytest.mark.parametrize("pod", PODS)
def test_only_the_autoscaler_has_a_token_of_the_kubernetes_api(pod: Pod) -> None:
    assert pod.spec["automountServiceAccountToken"] is False
    tokens = {
        volume["name"]
        for volume in pod.spec.get("volumes", [])
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", []))
    }
    has = _each(pod, lambda each: tokens & {mount["name"] for mount in each["volumeMounts"]})
    assert has == (["autoscaler"] if tokens else [])
    assert bool(tokens) == any(container["name"] == "autoscaler" for container in pod.containers)


@pytest.mark.parametrize("pod", PODS)
def test_cpu_memory_and_disk_are_limited(pod: Pod) -> None:
    for container in pod.spec["containers"]:
        resources = container["resources"]
        assert {"cpu", "memory", "ephemeral-storage"} <= resources["limits"].keys()
        for what in ("memory", "ephemeral-storage"):
            assert resources["limits"][what] == resources["requests"][what]
