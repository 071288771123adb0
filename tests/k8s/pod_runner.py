"""Runs a pod of a manifest on this machine, without Kubernetes: its command in namespaces of its own.

A pod has its own network address, processes and file system. That is the machine's, read only; the volumes that the
manifest mounts are there at their paths, and only these can be written to; the user and the privileges are those of the
security contexts. Not reproduced: limits of memory and CPU, the seccomp filter, a container image (Python and its
packages are those of the tests), and more than one container.

Needs root on Linux, and unshare, setpriv, ip and nsenter.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.k8s.rendered import ROOT, Pod, in_bytes

TOOLS = ("unshare", "setpriv", "ip", "nsenter", "mount", "chroot")
# Of the machine's files, what programs need. The rest, other users' homes among it, is not in a pod.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
ETC = ("group", "hosts", "ld.so.cache", "nsswitch.conf", "ssl", "localtime", "alternatives")
DEVICES = ("null", "zero", "full", "random", "urandom")


def why_not() -> str:
    """Why no pod can run here; empty if one can."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"needs {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    # A container's root has not always the right to (CAP_SYS_ADMIN).
    probe = ["unshare", "--mount", "--ipc", "--uts", "--pid", "--net", "--fork", "mount", "--make-rprivate", "/"]
    tried = subprocess.run(probe, capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"namespaces are not permitted here: {tried.stderr.strip()}"


@dataclass
class Network:
    """A bridge in a network namespace of its own, which this machine's network is not part of."""

    name: str
    addresses: int = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Self]:
        network = cls(f"rs{os.getpid()}")
        _run(f"ip netns add {network.name}")
        try:
            _run(f"ip -n {network.name} link add bridge type bridge")
            _run(f"ip -n {network.name} link set bridge up")
            yield network
        finally:
            _run(f"ip netns del {network.name}")

    @contextlib.contextmanager
    def address(self) -> Iterator[tuple[str, str]]:
        """A namespace that is connected to the bridge, by name, and its address."""
        self.addresses += 1
        name, address = f"{self.name}x{self.addresses}", f"10.77.0.{self.addresses}"
        _run(f"ip netns add {name}")
        try:
            _run(f"ip -n {self.name} link add p{self.addresses} type veth peer name eth0 netns {name}")
            _run(f"ip -n {self.name} link set p{self.addresses} master bridge up")
            _run(f"ip -n {name} address add {address}/24 dev eth0")
            _run(f"ip -n {name} link set lo up")
            _run(f"ip -n {name} link set eth0 up")
            _run(f"ip -n {name} route add default dev eth0")
            yield name, address
        finally:
            _run(f"ip netns del {name}")


@dataclass
class Cluster:
    """What the pods of a namespace of Kubernetes share.

    Args:
        folder: for their volumes.
        config_maps, secrets: by name; the files, or the variables, of each.
        images: files that are in the image: path there to path here.
        environment: variables of every container, as KubeRay sets them.
    """

    folder: Path
    network: Network
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def run(self, pod: Pod, command: list[str], variables: Mapping[str, str] | None = None) -> Iterator["Running"]:
        """Starts the first container of a pod with a command; ends all its processes on the way out."""
        home = self.folder / f"{pod.name}-{self.network.addresses}"
        home.mkdir()
        container = pod.spec["containers"][0]
        environment = self._environment(container) | dict(variables or {})
        with self.network.address() as (namespace, address):
            began, begins = os.pipe()
            script = self._script(pod, container, home, environment | {"POD_IP": address}, command, begins)
            log = home / "log"
            with log.open("wb") as output:
                inside = [
                    "unshare",
                    "--mount",
                    "--ipc",
                    "--uts",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "bash",
                    "-c",
                    script,
                ]
                process = subprocess.Popen(
                    ["ip", "netns", "exec", namespace, *inside],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[begins],
                )
            os.close(begins)
            running = Running(pod, process, address, environment, home, log)
            try:
                with os.fdopen(began) as told:
                    assert told.readline() == "begins\n", log.read_text()
                yield running
            finally:
                running.kill()

    def _environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """Nothing of this process's own: what the image sets, what the manifest names, what KubeRay adds."""
        image = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "HOME": "/home/ray", "PYTHONPATH": str(ROOT)}
        named = {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}
        for each in container.get("env", []):
            if reference := each.get("valueFrom", {}).get("secretKeyRef"):
                named[each["name"]] = self.secrets[reference["name"]][reference["key"]]
        secrets: dict[str, str] = {}
        for source in container.get("envFrom", []):
            secrets |= self.secrets[source["secretRef"]["name"]]
        return image | secrets | named | dict(self.environment)

    def _script(
        self,
        pod: Pod,
        container: Mapping[str, Any],
        home: Path,
        environment: Mapping[str, str],
        command: list[str],
        begins: int,
    ) -> str:
        """Makes the root file system, says on file descriptor ``begins`` that it is there, and becomes the command."""
        root = home / "root"
        lines = ["set -e", "mount --make-rprivate /", f"mkdir {root}", f"mount -t tmpfs -o mode=0755 root {root}"]
        for path in map(Path, SYSTEM):
            if path.is_symlink():
                lines.append(f"cp -a {path} {root}{path}")
            elif path.exists():
                lines += _bind(path, root, str(path))
        lines.append(f"mkdir {root}/etc")
        lines += [f"cp -aL /etc/{name} {root}/etc/" for name in ETC if Path("/etc", name).exists()]
        lines.append(f"echo 'ray:x:1000:1000::/home/ray:/bin/bash' > {root}/etc/passwd")
        lines += [f"mkdir {root}/proc {root}/sys {root}/dev", f"mount -t proc proc {root}/proc"]
        lines.append(f"mount --rbind -o ro /sys {root}/sys")
        for device in DEVICES:
            lines += [f"touch {root}/dev/{device}", f"mount --bind /dev/{device} {root}/dev/{device}"]
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for mount in sorted(container.get("volumeMounts", []), key=lambda mount: str(mount["mountPath"])):
            lines += self._mount(volumes[mount["name"]], mount, home, root)
        # After the volumes, of which /tmp may be where the repository is.
        for path in (Path(sys.base_prefix), Path(sys.prefix).resolve(), ROOT):
            if not any(path.is_relative_to(there) for there in SYSTEM):
                lines += _bind(path, root, str(path))
        for there, here in self.images.items():
            lines += _bind(here, root, there)
        if container["securityContext"].get("readOnlyRootFilesystem"):
            lines.append(f"mount -o remount,ro {root}")
        variables = [f"{name}={value}" for name, value in environment.items()]
        lines += ["hostname pod", "cd /", f"echo begins >&{begins}", f"exec {begins}>&-"]
        program = ["chroot", str(root), *_privileges(pod, container), "env", "-i", *variables, *command]
        return "\n".join([*lines, "exec " + shlex.join(program)])

    def _mount(self, volume: Mapping[str, Any], mount: Mapping[str, Any], home: Path, root: Path) -> list[str]:
        there = mount["mountPath"]
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            size = in_bytes(volume["emptyDir"]["sizeLimit"])
            return [f"mkdir -p {root}{there}", f"mount -t tmpfs -o mode=1777,size={size} shm {root}{there}"]
        if "persistentVolumeClaim" in volume:  # the same for all pods
            here = self.folder / volume["persistentVolumeClaim"]["claimName"]
        else:
            here = home / volume["name"]
        here.mkdir(exist_ok=True)
        here.chmod(0o777)
        for name, text in self._files(volume).items():
            (here / name).write_text(text)
        return _bind(here, root, there, writable=not mount.get("readOnly"))

    def _files(self, volume: Mapping[str, Any]) -> Mapping[str, str]:
        if "configMap" in volume:
            return self.config_maps[volume["configMap"]["name"]]
        if "secret" in volume:
            return self.secrets[volume["secret"]["secretName"]]
        return {}


@dataclass
class Running:
    """A pod whose command runs."""

    pod: Pod
    process: subprocess.Popen[bytes]
    address: str
    environment: Mapping[str, str]
    home: Path
    log: Path

    def execute(self, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A further command in the pod, as by ``kubectl exec``."""
        namespaces = ["nsenter", "--target", str(self._init()), "--mount", "--ipc", "--uts", "--pid", "--net"]
        root = self.home / "root"
        privileges = _privileges(self.pod, self.pod.spec["containers"][0])
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        chroot = ["chroot", str(root), *privileges, "env", "-i", *variables, *command]
        return subprocess.run([*namespaces, *chroot], capture_output=True, text=True, timeout=timeout_s)

    def kill(self) -> None:
        """Ends all processes of the pod at once. Their connections are closed, while the pod's address is there."""
        try:
            os.kill(self._init(), signal.SIGKILL)  # the kernel ends with it all of the PID namespace
        except (ValueError, OSError):  # it has ended, or has not begun
            self.process.kill()
        self.process.wait()

    def _init(self) -> int:
        """The first process of the pod: what unshare has forked."""
        [child] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)


def _privileges(pod: Pod, container: Mapping[str, Any]) -> list[str]:
    user = pod.spec["securityContext"]
    options = [f"--reuid={user['runAsUser']}", f"--regid={user['runAsGroup']}", "--clear-groups"]
    if not container["securityContext"]["allowPrivilegeEscalation"]:
        options.append("--no-new-privs")
    if container["securityContext"]["capabilities"]["drop"] == ["ALL"]:
        options += ["--inh-caps=-all", "--bounding-set=-all"]
    return ["setpriv", *options]


def _bind(here: Path, root: Path, there: str, *, writable: bool = False) -> list[str]:
    """Shell lines that show a file or folder of this machine in a pod."""
    target = f"{root}{there}"
    made = f"mkdir -p {target}" if here.is_dir() else f"mkdir -p {Path(target).parent} && touch {target}"
    lines = [made, f"mount --bind {here} {target}"]
    return lines if writable else [*lines, f"mount -o remount,bind,ro {target}"]


def _run(command: str) -> None:
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
