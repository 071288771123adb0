"""``rayscribe serve``: the application on this machine, or on a cluster, until it is told to stop."""

import contextlib
import logging
import signal
import sys
import time

from cluster.nodes import Layout
from cluster.session import join_ray, last_line, lay_out
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
    join_ray(settings.address, _metrics_export_port=settings.metrics_port)
    # Ray has set a handler that aborts the process three seconds after SIGTERM; draining takes longer.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    try:
        print(f"starting {settings.model}", flush=True)
        deploy(settings, lay_out(settings.address, settings.listeners, settings.engines), start)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"listening at http://{host}:{settings.port}; metrics at port {settings.metrics_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # the second time they end the draining, too
            signal.pause()
    finally:
        stop(settings.drain_s)


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
    return last_line("\n".join(messages)) or "its log is in Ray's session folder"
