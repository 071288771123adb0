"""``rayscribe serve``: runs the application, on this machine or on a cluster, until SIGTERM or SIGINT."""

import contextlib
import logging
import signal

from cluster.nodes import Layout
from cluster.session import cluster_layout, connect_ray, last_error_line, last_line
from serve.auth import ApiKeys
from serve.settings import ServeSettings, is_loopback
from speech.engines.base import EngineStarter, start_engine
from speech.engines.dtype import slow_dtype_warning
from speech.errors import RayscribeError
from speech.preflight import preflight

APP = "rayscribe"


def run(settings: ServeSettings, start: EngineStarter = start_engine) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        UsageError: a model is unknown or not available, there is no room for all, or the keys cannot be read.
        RayscribeError: ``ray_failed`` or ``deploy_failed``.
    """
    for rule in settings.rules:
        preflight(rule, loads_here=start is start_engine and not settings.cluster.address)
    if settings.api_keys:
        ApiKeys(settings.api_keys)
    connect_ray(settings.cluster.address, metrics_port=settings.metrics_port, loopback=is_loopback(settings.host))
    try:
        print(f"starting {' and '.join(rule.model for rule in settings.rules)}", flush=True)
        layout = cluster_layout(settings.cluster)
        on_this_cpu = not (layout.gpus_per_engine or settings.cluster.address)
        for warning in {slow_dtype_warning(rule.dtype) for rule in settings.rules if on_this_cpu} - {""}:
            print(f"warning: {warning}", flush=True)
        deploy(settings, layout, start)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"listening at http://{host}:{settings.port}; metrics at port {settings.metrics_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # a second signal interrupts the draining
            signal.pause()
        drain(settings.drain_s)
    finally:
        stop()


def deploy(settings: ServeSettings, layout: Layout, start: EngineStarter) -> None:
    """Deploys the application; returns when it answers.

    Raises:
        RayscribeError: ``deploy_failed``.
    """
    from ray import serve

    from serve.app import application
    from serve.tracing import tracing_config

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # hides its progress; replicas log to Ray's session folder
    own_server = not settings.cluster.address
    serve.start(
        proxy_location="Disabled" if own_server else "HeadOnly",
        http_options={"host": settings.host, "port": settings.port},
        tracing_config=tracing_config(),
    )
    try:
        serve.run(application(settings, layout, start, own_server=own_server), name=APP)
    except RuntimeError as error:
        raise RayscribeError("deploy_failed", f"the endpoint did not start: {_deployment_message()}") from error


def drain(drain_s: float) -> None:
    """Refuses new requests, and waits up to ``drain_s`` seconds for those in flight.

    Serve would stop all three deployments at once; what a Listener then finishes would have no Transcriber.
    """
    from ray import serve
    from ray.exceptions import RayError

    print("finishing the requests in flight", flush=True)
    closed = serve.get_app_handle(APP).close.remote()
    try:
        closed.result(timeout_s=drain_s)
    except TimeoutError:
        print(f"requests are still in flight after {drain_s:g} s: cancelling them", flush=True)
    except RayError as error:
        print(f"the requests in flight are lost: {last_error_line(error)}", flush=True)
    else:
        # Stops the replicas before the proxy, which may still be sending the last answer.
        serve.delete(APP)


def stop() -> None:
    """Shuts Serve down, and Ray in this process."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


def _deployment_message() -> str:
    """The last line of Serve's messages about the deployments."""
    from ray import serve

    application = serve.status().applications.get(APP)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    return last_line("\n".join(messages)) or "its log is in Ray's session folder"
