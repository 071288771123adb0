"""This process's session with Ray: joined or started, laid out, and left when it must be."""

import contextlib
import logging
import os
import signal
import threading
from typing import Any, NoReturn

import psutil

from cluster.nodes import Layout, local_slots, plan_layout
from cluster.settings import ClusterConfig
from speech.errors import RayscribeError


def connect_ray(address: str | None, **started_with: Any) -> None:
    """Joins the cluster at ``address``, or starts one on this machine; leaves a running one as it is.

    A handler of SIGTERM that this process has set stays in place. Ray's own ends the process in seconds and
    with code 1, before a run could let its output go or an endpoint finish its requests.

    Args:
        address: ray://… or auto; None for this machine.
        started_with: further arguments of ``ray.init`` for a cluster that is started here.

    Raises:
        RayscribeError: ``ray_failed``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry unless the user asks for it
    # Ray's own processes write their complaints to files, and not between the lines of ours.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    here = {"address": "local", "num_cpus": local_slots(_cores()), "include_dashboard": False, **started_with}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **({"address": address} if address else here))
    except Exception as error:  # Ray raises a plain Exception where its own processes do not come up
        raise RayscribeError("ray_failed", f"Ray cannot be started or joined: {last_error_line(error)}") from error
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


def cluster_layout(cluster: ClusterConfig) -> Layout:
    """The layout for what the connected Ray has."""
    import ray

    resources = ray.cluster_resources()
    # Of a cluster's nodes none may be there yet, where they come as they are needed.
    cores = int(resources.get("CPU", 0)) if cluster.address else _cores()
    return plan_layout(resources, cores, cluster.listeners, cluster.engines)


def kill_children_and_exit() -> NoReturn:
    """Ends this process at once, and before it those that it has started: a stuck engine holds its GPU."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(1)


def last_error_line(error: Exception) -> str:
    """What an error of Ray says, in one line."""
    return last_line(str(error)) or type(error).__name__


def last_line(text: str) -> str:
    """What Ray says in the end: before it stand the tracebacks of every process it crossed."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _cores() -> int:
    return os.cpu_count() or 1
