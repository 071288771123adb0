"""The endpoint as a Ray Serve application: deployments that scale independently.

    Endpoint      HTTP: forms, limits, answers (serve.routes)
    Listener      CPU: speech.listener.Listener, one recording at a time
    Transcriber   engine: speech.transcriber.Transcriber, all requests in one batch; one for each model

On a cloud's notice that their machine is taken away, replicas drain its node: Serve starts others elsewhere, sends them
what comes, and ends each once its requests are answered.

Errors travel between deployments as values: Serve would log each that is raised, with the name of the file.
"""

import asyncio
import contextlib
import logging
import math
import re
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle

from cluster.nodes import Layout
from cluster.preemption import drain_on_notice, notice_here
from cluster.session import cluster_layout, fit_engine_here, kill_children_and_exit
from serve.autoscaling import QUEUED_AUDIO, ByQueuedAudio, engine_bounds
from serve.backend import ListenSummary
from serve.growing_file import LocalFile
from serve.http_server import HttpServer
from serve.listener_process import ListenerProcess, ListenerSettings
from serve.metrics import EngineMetrics, RequestMetrics
from serve.routes import http_app
from serve.serve_backend import ServeBackend
from serve.service import TranscriptionService
from serve.settings import ServedModel, ServeSettings
from serve.tracing import TracedRequests
from speech.engines.base import EngineStarter, start_engine
from speech.engines.start_limit import start_within_limit
from speech.errors import EngineDied, RayscribeError
from speech.listener import ListenResult
from speech.preflight import preflight
from speech.recording import Recording
from speech.transcriber import ClipTranscript, Transcriber
from speech.transcript import Usage

# The share of an engine's concurrent clips that one recording may have, however long it is. An eighth answers short
# ones beside a long one sooner, but calls of a few minutes later.
RECORDING_SHARE = 0.25
# Short enough that an engine that dies idle is replaced before the next request.
HEALTH_CHECK_S = 5.0
# Listener replicas unless --listeners is given, even on a small machine: a long recording holds one of them.
MIN_LISTENERS = 2
# A recording may take this long to decode, and this long for each byte of its file, but at most listen_timeout_s.
# Speech at the lowest rates (AMR at 4.75 kbit/s, Opus at 6) takes about 7 µs a byte on one core of an EPYC; a few kB
# of FLAC may expand to ten minutes on eight channels, which take 17 s: they are refused after 9 s.
MIN_LISTEN_S = 5.0
LISTEN_S_PER_BYTE = 1e-4
# Recordings with more channels than this may be shorter in proportion: --max-audio-s times this, over all channels.
FULL_LENGTH_CHANNELS = 2
# The Transcriber itself limits the clips in flight in its engine; a request that waits costs only memory.
UNBOUNDED = 100_000

log = logging.getLogger("rayscribe")


class ListenerReplica:
    """Runs a Listener in a child process (``serve.listener_process``), for one request at a time."""

    def __init__(self, settings: ServeSettings) -> None:
        drain_on_notice(notice_here())
        self._timeout_s = settings.listen_timeout_s
        self._process = ListenerProcess(
            ListenerSettings(
                clip_s=settings.clip_s,
                max_duration_s=settings.max_audio_s,
                max_channel_s=FULL_LENGTH_CHANNELS * settings.max_audio_s,
            )
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="listener")

    async def listen(
        self, recording: Recording, audio: np.ndarray | LocalFile
    ) -> AsyncGenerator[ListenSummary | RayscribeError, None]:
        """Decodes an upload and cuts its speech.

        Args:
            recording: what is asked for.
            audio: its file on this machine, which may be growing; or uint8, the bytes of it, in shared memory.

        Yields:
            Summaries of parts, whose handles are references to each ``ListenResult`` in the object store; an error is
            the last item.
        """
        size = audio.size if isinstance(audio, LocalFile) else audio.nbytes
        limit_s = min(self._timeout_s, MIN_LISTEN_S + LISTEN_S_PER_BYTE * size)
        loop = asyncio.get_running_loop()
        parts = self._process.stream(recording, audio, limit_s)
        try:
            while (summary := await loop.run_in_executor(self._thread, _next_summary, parts)) is not None:
                yield summary
        except RayscribeError as error:
            yield error
        except (asyncio.CancelledError, GeneratorExit):
            self._process.kill()
            raise

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._process.close()


def _next_summary(parts: Iterator[ListenResult]) -> ListenSummary | None:
    part = next(parts, None)
    return None if part is None else ListenSummary.of(part, ray.put(part))


class TranscriberReplica:
    """Runs a ``Transcriber``. Exits its process when the engine has died, so that Serve starts another."""

    def __init__(self, served: ServedModel, engines_per_gpu: int, start: EngineStarter) -> None:
        drain_on_notice(notice_here())
        config, family = fit_engine_here(served, engines_per_gpu), served.family
        engine = start_within_limit(start, config, family)
        self._transcriber = Transcriber(
            engine,
            family,
            config.model,
            config.concurrent_clips,
            clip_timeout_s=config.clip_timeout_s,
            clips_per_recording=math.ceil(RECORDING_SHARE * config.concurrent_clips),
        )
        self._metrics = EngineMetrics()
        self._warm = False

    async def detect_language(
        self, recording: Recording, listened: ListenResult, live: bool
    ) -> Recording | RayscribeError:
        """The recording in its language."""
        try:
            return await self._transcriber.detect_language(recording, listened, live=live)
        except EngineDied as died:
            _exit(died)
        except RayscribeError as error:
            return error

    async def transcribe(self, recording: Recording, listened: ListenResult) -> list[ClipTranscript] | RayscribeError:
        """All clips in one answer, which costs less than one a clip."""
        try:
            clips = [clip async for clip in self._transcriber.stream(recording, listened)]
        except EngineDied as died:
            _exit(died)
        except RayscribeError as error:
            return error
        self._metrics.add_usage(sum((clip.usage for clip in clips), Usage()))
        return clips

    async def stream(
        self, recording: Recording, listened: ListenResult, live: bool
    ) -> AsyncGenerator[ClipTranscript | RayscribeError, None]:
        """The clips in time order, each as soon as it is decoded; an error is the last item."""
        try:
            async with contextlib.aclosing(self._transcriber.stream(recording, listened, live=live)) as clips:
                async for clip in clips:
                    self._metrics.add_usage(clip.usage)
                    yield clip
        except EngineDied as died:
            _exit(died)
        except RayscribeError as error:
            yield error

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises; the first call comes before any request."""
        if not self._warm:
            await self._transcriber.warm_up()
            self._warm = True
        self._metrics.queued(self._transcriber.queued_audio_s)
        await self._transcriber.engine.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve; ``serve.autoscaling`` reads the result."""
        return {QUEUED_AUDIO: self._transcriber.queued_audio_s}

    def __del__(self) -> None:
        if hasattr(self, "_transcriber"):  # the engine has started
            self._transcriber.engine.stop()


class EndpointReplica:
    """The ingress: HTTP and WebSockets.

    Args:
        settings: of the endpoint.
        listener, transcribers: the other deployments; the latter by model.
        own_server: whether to listen on the settings' host and port; otherwise requests come from Serve's proxies.
    """

    def __init__(
        self,
        settings: ServeSettings,
        listener: DeploymentHandle,
        transcribers: Mapping[str, DeploymentHandle],
        own_server: bool,
    ) -> None:
        drain_on_notice(notice_here())
        local = own_server and sys.platform == "linux"
        backends = {model: ServeBackend(listener, each, local=local) for model, each in transcribers.items()}
        self._service = TranscriptionService(settings, backends, RequestMetrics())
        self._app = http_app(settings, self._service)
        self._server = HttpServer(TracedRequests(self._app), settings.host, settings.port) if own_server else None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def close(self) -> None:
        """Refuses new requests, and returns when those in flight are answered. Called by ``serve.server.drain``."""
        await self._service.close()
        if self._server is not None:
            await self._server.stop()


def _exit(died: EngineDied) -> NoReturn:
    """Exits the process, so that no request is sent to a dead engine; the Endpoint answers those in flight 503."""
    log.error("the engine has died; exiting: %s", died)
    kill_children_and_exit()


def build(settings: ServeSettings) -> serve.Application:
    """The application, for ``serve run serve.app:build model=…`` and Serve configs (``serve/config.yaml``).

    Raises:
        UsageError: as of ``preflight``.
    """
    for rule in settings.rules:
        preflight(rule, loads_here=False)
    on_cluster = settings.cluster.model_copy(update={"address": "auto"})
    return application(settings, cluster_layout(on_cluster))


def application(
    settings: ServeSettings, layout: Layout, start: EngineStarter = start_engine, *, own_server: bool = False
) -> serve.Application:
    """The application, for a layout.

    Args:
        settings: of the endpoint.
        layout: the maximum numbers of replicas, and the resources of each.
        start: starts the engine in its replica; tests of the endpoint pass a fake engine's.
        own_server: whether the one Endpoint replica is its own HTTP server, in place of Serve's proxies.

    Raises:
        UsageError: as of ``engine_bounds``.
    """
    lifecycle = {"graceful_shutdown_timeout_s": settings.drain_s, "health_check_period_s": HEALTH_CHECK_S}
    listeners = settings.cluster.listeners or max(MIN_LISTENERS, layout.listeners)
    listener = serve.deployment(
        name="Listener",
        max_ongoing_requests=1,  # the others wait for whichever replica is free first
        ray_actor_options=_listener_resources(layout, listeners),
        autoscaling_config=AutoscalingConfig(
            min_replicas=min(MIN_LISTENERS, listeners),
            max_replicas=listeners,
            target_ongoing_requests=2,
            upscale_delay_s=2,
        ),
        **lifecycle,
    )(ListenerReplica)
    bounds = engine_bounds(settings.rules, settings.min_engines, layout.engines)
    transcribers = {
        served.model: serve.deployment(
            name=_deployment_name(settings, served),
            max_ongoing_requests=UNBOUNDED,
            max_constructor_retry_count=3,
            ray_actor_options=_engine_resources(layout),
            autoscaling_config=_engine_autoscaling(settings, *each),
            **lifecycle,
        )(TranscriberReplica).bind(served, layout.engines_per_gpu, start)
        for served, each in zip(settings.rules, bounds, strict=True)
    }
    endpoint = serve.deployment(
        name="Endpoint",
        # Well above max_requests, so that the excess is refused by the Endpoint, with an error of OpenAI's shape.
        max_ongoing_requests=10 * settings.max_requests,
        max_constructor_retry_count=3,  # where the port is taken
        ray_actor_options={"num_cpus": 0},
        **lifecycle,
    )(serve.ingress()(EndpointReplica))
    return endpoint.bind(settings, listener.bind(settings), transcribers, own_server)


def _deployment_name(settings: ServeSettings, served: ServedModel) -> str:
    """``Transcriber``, and the model's name where there are several."""
    return "-".join(["Transcriber", *re.findall(r"[\w.]+", served.model)]) if settings.models else "Transcriber"


def _engine_autoscaling(settings: ServeSettings, min_engines: int, max_engines: int) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=min_engines,
        max_replicas=max_engines,
        downscale_delay_s=settings.engine_idle_s,
        policy=AutoscalingPolicy(policy_function=ByQueuedAudio, policy_kwargs={"target_s": settings.queued_audio_s}),
    )


def _listener_resources(layout: Layout, replicas: int) -> dict[str, Any]:
    """Apart from engines only where the other nodes suffice: Serve spreads replicas, which ignores a fallback."""
    labels = {} if layout.listeners_anywhere else dict(layout.listener_labels)
    return {"num_cpus": min(layout.cpus_per_listener, layout.listeners / replicas)} | (
        {"label_selector": labels} if labels else {}
    )


def _engine_resources(layout: Layout) -> dict[str, Any]:
    return {
        "num_cpus": layout.cpus_per_engine,
        "num_gpus": layout.gpus_per_engine,
        "resources": dict(layout.engine_resources),
        "runtime_env": layout.engine_runtime_env,
    }
