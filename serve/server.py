"""``rayscribe serve``: the application on this machine, or on a cluster, until it is told to stop."""

import contextlib
import logging
import signal

from cluster.nodes import Layout
from cluster.session import cluster_layout, connect_ray, last_error_line, last_line
from serve.auth import ApiKeys
from serve.settings import ServeSettings
from speech.engines.base import EngineStarter, start_engine
from speech.errors import RayscribeError
from speech.models.checkpoint import check_available, family_of

APP = "rayscribe"


def run(settings: ServeSettings, start: EngineStarter = start_engine) -> None:
    """Serves until SIGTERM or SIGINT, then lets the requests in hand finish.

    Raises:
        UsageError: the model is unknown or cannot be had, or the keys cannot be read.
        RayscribeError: ``ray_failed`` or ``deploy_failed``.
    """
    family_of(settings.model)
    if settings.api_keys:
        ApiKeys(settings.api_keys)
    if start is start_engine and not settings.address:  # a cluster's machines have caches and networks of their own
        check_available(settings.model)
    connect_ray(settings.address, metrics_port=settings.metrics_port)
    try:
        print(f"starting {settings.model}", flush=True)
        deploy(settings, cluster_layout(settings.address, settings.listeners, settings.engines), start)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"listening at http://{host}:{settings.port}; metrics at port {settings.metrics_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # the second time they end the draining, too
            signal.pause()
        drain(settings.drain_s)
    finally:
        stop()


def deploy(settings: ServeSettings, layout: Layout, start: EngineStarter) -> None:
    """Brings the application up; returns when it answers.

    Raises:
        RayscribeError: ``deploy_failed``.
    """
    from ray import serve

    from serve.app import application
    from serve.tracing import tracing_config

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # its progress; each replica's log is in Ray's session
    serve.start(http_options={"host": settings.host, "port": settings.port}, tracing_config=tracing_config())
    try:
        serve.run(application(settings, layout, start), name=APP)
    except RuntimeError as error:
        raise RayscribeError("deploy_failed", f"the endpoint does not come up: {_why()}") from error


def drain(drain_s: float) -> None:
    """Lets no request in any more, and waits until those in hand are answered, for ``drain_s`` seconds at most.

    Serve would stop all three deployments at once, and what the Listener had heard by then would find no engine.
    """
    from ray import serve
    from ray.exceptions import RayError

    print("finishing the requests in hand", flush=True)
    closed = serve.get_app_handle(APP).close.remote()
    try:
        closed.result(timeout_s=drain_s)
    except TimeoutError:
        print(f"after {drain_s:g} s there are still requests in hand: they are given up", flush=True)
    except RayError as error:
        print(f"the requests in hand are lost: {last_error_line(error)}", flush=True)
    else:
        # Its replicas end first, and only then the proxy, through which the last answer may still be on its way.
        serve.delete(APP)


def stop() -> None:
    """Ends Serve, and what this process has of Ray."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


def _why() -> str:
    """What Serve says of the deployments that did not come up, its last line."""
    from ray import serve

    application = serve.status().applications.get(APP)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    return last_line("\n".join(messages)) or "its log is in Ray's session folder"
