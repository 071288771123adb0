"""``rayscribe serve``: the application on this machine, or on a cluster, until it is told to stop."""

import contextlib
import logging
import os
import signal
import sys
import time
from typing import Any

from cluster.nodes import Layout, local_slots, plan_layout
from serve.keys import ApiKeys
from serve.settings import ServeSettings
from speech.engine import EngineStarter, start_engine
from speech.errors import RayscribeError
from speech.models import family_of

APP = "rayscribe"
POLL_S = 0.2


def run(settings: ServeSettings, start: EngineStarter = start_engine) -> None:
    """Serves until SIGTERM or SIGINT, then lets the requests in hand finish.

    Raises:
        UsageError: the model is unknown, or the keys cannot be read.
        RayscribeError: ``ray_failed`` or ``deploy_failed``.
    """
    family_of(settings.model)
    if settings.api_keys:
        ApiKeys(settings.api_keys)
    layout = start_ray(settings)
    # Ray has set a handler that aborts the process three seconds after SIGTERM; draining takes longer.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    try:
        print(f"starting {settings.model}", flush=True)
        deploy(settings, layout, start)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"listening at http://{host}:{settings.port}; metrics at port {settings.metrics_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # the second time they end the draining, too
            signal.pause()
    finally:
        stop(settings.drain_s)


def start_ray(settings: ServeSettings) -> Layout:
    """Joins the cluster of the settings, or starts one on this machine; says how replicas are laid out there."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry unless the user asks for it
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    cores = os.cpu_count() or 1
    here: dict[str, Any] = {
        "address": "local",
        "num_cpus": local_slots(cores),
        "include_dashboard": False,
        "_metrics_export_port": settings.metrics_port,
    }
    where = {"address": settings.address} if settings.address else here
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    except Exception as error:  # Ray raises a plain Exception where its own processes do not come up
        raise RayscribeError("ray_failed", f"Ray cannot be started or joined: {error}") from error
    resources = ray.cluster_resources()
    return plan_layout(
        resources, int(resources["CPU"]) if settings.address else cores, settings.listeners, settings.engines
    )


def deploy(settings: ServeSettings, layout: Layout, start: EngineStarter) -> None:
    """Brings the application up; returns when it answers.

    Raises:
        RayscribeError: ``deploy_failed``.
    """
    from ray import serve

    from serve.app import application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # its progress; each replica's log is in Ray's session
    serve.start(http_options={"host": settings.host, "port": settings.port})
    try:
        serve.run(application(settings, layout, start), name=APP)
    except RuntimeError as error:
        raise RayscribeError("deploy_failed", f"the endpoint does not come up: {_why()}") from error


def stop(drain_s: float) -> None:
    """Takes the application down: replicas finish what they have, for ``drain_s`` seconds at most."""
    import ray
    from ray import serve

    until = time.monotonic() + drain_s
    serve.delete(APP, _blocking=False)
    while APP in serve.status().applications and time.monotonic() < until:
        time.sleep(POLL_S)
    serve.shutdown()
    ray.shutdown()


def _why() -> str:
    """What Serve says of the deployments that did not come up, its last line."""
    from ray import serve

    application = serve.status().applications.get(APP)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "its log is in Ray's session folder"
