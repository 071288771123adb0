"""This process's connection to Ray: joined or started, the layout of actors on it, and the exit of a failed process."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

from cluster.gpus import MEMORY_GIB, find_gpus, fit_engine
from cluster.nodes import ACCELERATOR_LABEL, Layout, Node, local_slots, nodes_of, plan_layout
from cluster.settings import ClusterConfig
from speech.engines.base import EngineConfig
from speech.errors import RayscribeError
from speech.processes import kill_children

log = logging.getLogger("rayscribe")

# Between two looks at a cluster whose nodes are not there yet.
NODES_AGAIN_S = 2.0


def connect_ray(address: str | None, metrics_port: int | None = None, *, loopback: bool = False) -> None:
    """Joins the cluster at ``address``, or starts one on this machine. A process that is connected stays so.

    A SIGTERM handler that this process has set stays in place. Ray's own ends the process within seconds and
    with code 1, before a run could release its lease or an endpoint finish its requests.

    Args:
        address: ray://… or auto; None for this machine.
        metrics_port: where a Ray that is started here exports its metrics; None: at a port of its choice.
        loopback: whether a Ray that is started here listens on loopback only, with its metrics. For the process's life.

    Raises:
        RayscribeError: ``ray_failed`` or ``unsupported_ray``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry unless the user asks for it
    # Ray's own code in C++ writes nothing between the lines of ours, in this process and others.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    from cluster import ray_internals

    if ray.is_initialized():
        return
    ray_internals.check()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    arguments: dict[str, Any] = {"address": address}
    if not address:
        arguments = {"address": "local", "num_cpus": local_slots(_cores()), "include_dashboard": False}
        if metrics_port is not None:
            arguments |= ray_internals.metrics_port_argument(metrics_port)
        if loopback:
            ray_internals.use_loopback()
    ray_internals.hide_messages()
    try:
        with _native_stderr_hidden():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
    except Exception as error:  # Ray raises a plain Exception where its own processes do not start
        raise RayscribeError("ray_failed", f"Ray cannot be started or joined: {last_error_line(error)}") from error
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


@contextlib.contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    """Discards what native code writes to file descriptor 2. ``sys.stderr`` writes to a duplicate of it meanwhile.

    Ray's core writes a line there when it starts, even at the log level "fatal": that it has that level.
    """
    sys.stderr.flush()
    with open(os.dup(2), "w", buffering=1) as shown, open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
        try:
            with contextlib.redirect_stderr(shown):
                yield
        finally:
            os.dup2(shown.fileno(), 2)


def cluster_layout(cluster: ClusterConfig) -> Layout:
    """The layout for what the connected Ray has, and may add."""
    nodes = cluster_nodes()
    if not cluster.address:  # Ray counts the spare slots too
        nodes = [replace(node, cpus=_cores(), slots=node.cpus) for node in nodes]
    return plan_layout(nodes, cluster)


def await_nodes(cluster: ClusterConfig, say: Callable[[str], None], check: Callable[[], None]) -> Layout:
    """The layout, once nodes have room for an engine and a Listener. Ray's autoscaler is asked for such nodes.

    Args:
        cluster: settings; without an address there is nothing to wait for.
        say: told once what is waited for.
        check: called again and again meanwhile; may raise.
    """
    layout = cluster_layout(cluster)
    if not cluster.address or not layout.missing:
        return layout
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"CPU": 1}, _engine_bundle(layout)])
    said = ""
    try:
        while layout.missing:
            if layout.missing != said:
                said = layout.missing
                say(f"waiting for {said}")
            time.sleep(NODES_AGAIN_S)
            check()
            layout = cluster_layout(cluster)
    finally:
        request_resources(bundles=[])  # the job's own actors are the demand from here on
    return layout


@contextlib.contextmanager
def follow_nodes(cluster: ClusterConfig, layout: Layout, resize: Callable[[Layout], None]) -> Iterator[None]:
    """Calls ``resize`` when nodes have come or gone, while its block runs: with the layout in its new size.

    Only on a cluster, and only where Ray places engines as the layout has them: by GPUs or a custom resource, or on
    CPUs where each is alone on its node. ``resize`` is called from another thread.
    """
    if not cluster.address or not (layout.grows or layout.alone):
        yield
        return
    ended = threading.Event()

    def follow() -> None:
        size = layout
        while not ended.wait(NODES_AGAIN_S):
            try:
                now = layout.resized(cluster_layout(cluster))
            except Exception:  # the driver's connection to Ray: if it is lost, the run ends by itself
                log.exception("looking for new nodes")
                continue
            if now != size:
                size = now
                resize(size)

    thread = threading.Thread(target=follow, daemon=True, name="follow-nodes")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _engine_bundle(layout: Layout) -> dict[str, float]:
    bundle = {"CPU": layout.cpus_per_engine, "GPU": layout.gpus_per_engine, **layout.engine_resources}
    return {name: amount for name, amount in bundle.items() if amount}


def cluster_nodes() -> list[Node]:
    """The nodes of the connected Ray, and those that its autoscaler may add."""
    import ray

    from cluster import ray_internals

    return nodes_of(ray.nodes(), ray_internals.node_groups())


def fit_engine_here(config: EngineConfig, engines_per_gpu: int, *, bulk: bool = False) -> EngineConfig:
    """``fit_engine`` for the GPU of the node that this actor is on."""
    import ray

    if not engines_per_gpu:
        return config
    kind = ray.get_runtime_context().get_node_labels().get(ACCELERATOR_LABEL, "")
    memory_gib = next((gpu.memory_gib for gpu in find_gpus()), MEMORY_GIB.get(kind))
    return fit_engine(config, engines_per_gpu, memory_gib, bulk=bulk)


def kill_children_and_exit() -> NoReturn:
    """Kills this process's children, then exits with code 1: a hanging engine process would keep its GPU."""
    kill_children()
    os._exit(1)


def last_error_line(error: Exception) -> str:
    """The last line of an error of Ray, or the name of its class."""
    return last_line(str(error)) or type(error).__name__


def last_line(text: str) -> str:
    """The last line with text: Ray's messages begin with the traceback of every process that they passed."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _cores() -> int:
    return os.cpu_count() or 1
