"""The endpoint as a Ray Serve application: three deployments, which scale apart.

    Endpoint      HTTP: forms, limits, answers (serve.routes)
    Listener      CPU: speech.listener.Listener, one recording at a time
    Transcriber   engine: speech.transcriber.Transcriber, all requests in one batch

An upload goes from disk into Ray's object store, once; what the Listener has cut of it goes from there to the
engine, and not through the Endpoint. The answers of the two halves are small.

Errors travel between deployments as values: Serve would log each that is raised, with the name of the file.
"""

import asyncio
import contextlib
import logging
import mmap
import os
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, TypeVar

import numpy as np
import pyarrow as pa
import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from cluster.nodes import Layout
from cluster.session import cluster_layout, kill_children_and_exit
from serve.autoscaling import QUEUED_AUDIO, ByQueuedAudio
from serve.metrics import EngineMetrics, RequestMetrics
from serve.routes import Listened, TranscriptionService, http_app
from serve.settings import ServeSettings
from speech.engines.base import EngineStarter, start_engine
from speech.errors import EngineDied, RayscribeError, RequestError
from speech.listener import Listener, ListenResult
from speech.models.checkpoint import family_of
from speech.preflight import preflight
from speech.recording import Recording
from speech.transcriber import ClipTranscript, Transcriber
from speech.transcript import Transcript

# Often enough that an engine that dies idle is replaced before it is missed.
HEALTH_CHECK_S = 5.0
# Uploads that wait in one Listener, already in the object store.
LISTENER_QUEUE = 16
# The Transcriber itself bounds what its engine has in hand; whatever waits there costs memory alone.
UNBOUNDED = 100_000

log = logging.getLogger("rayscribe")

Answer = TypeVar("Answer")


class ListenerReplica:
    """The CPU half."""

    def __init__(self, settings: ServeSettings) -> None:
        clip_s = family_of(settings.engine_config.model).clip_s
        self._listener = Listener(clip_s=clip_s, max_duration_s=settings.max_audio_s)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="listener")

    async def listen(self, recording: Recording, audio: np.ndarray) -> ListenResult | RayscribeError:
        """Hears an upload: the bytes of its file, in shared memory."""
        source = pa.BufferReader(pa.py_buffer(audio))
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._listener.listen, recording, source
            )
        except RayscribeError as error:
            return error
        finally:  # where the client has hung up the thread still reads: the end of the file ends it
            source.close()


class TranscriberReplica:
    """The engine half. Leaves its process when the engine has died, so that Serve starts another."""

    def __init__(self, settings: ServeSettings, start: EngineStarter) -> None:
        config = settings.engine_config
        family = family_of(config.model)
        engine = start(config, family)
        self._transcriber = Transcriber(
            engine, family, config.model, config.concurrent_clips, clip_timeout_s=config.clip_timeout_s
        )
        self._metrics = EngineMetrics()
        self._warm = False

    async def transcribe(self, recording: Recording, listened: ListenResult) -> Transcript | RayscribeError:
        """The whole transcript."""
        try:
            transcript = await self._transcriber.transcribe(recording, listened)
        except EngineDied as died:
            _leave(died)
        except RayscribeError as error:
            return error
        self._metrics.spent(transcript.usage)
        return transcript

    async def stream(
        self, recording: Recording, listened: ListenResult
    ) -> AsyncGenerator[ClipTranscript | RayscribeError, None]:
        """The clips in the order of time, each as soon as it is decoded; an error ends them."""
        try:
            async with contextlib.aclosing(self._transcriber.stream(recording, listened)) as clips:
                async for clip in clips:
                    self._metrics.spent(clip.usage)
                    yield clip
        except EngineDied as died:
            _leave(died)
        except RayscribeError as error:
            yield error

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises; the first time before it sends requests."""
        if not self._warm:
            await self._transcriber.warm_up()
            self._warm = True
        self._metrics.queued(self._transcriber.queued_audio_s)
        await self._transcriber.engine.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve, for ``serve.autoscaling``."""
        return {QUEUED_AUDIO: self._transcriber.queued_audio_s}

    def __del__(self) -> None:
        self._transcriber.engine.stop()


class EndpointReplica:
    """Where requests come in."""

    def __init__(self, settings: ServeSettings, listener: DeploymentHandle, transcriber: DeploymentHandle) -> None:
        self._settings = settings
        self._service = TranscriptionService(settings, ServeBackend(listener, transcriber), RequestMetrics())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_app(self._settings, self._service)

    async def close(self) -> None:
        """Lets no request in any more, and returns when all have been answered: ``serve.server`` asks for it."""
        await self._service.limiter.close()


@dataclass(frozen=True)
class ServeBackend:
    """The two halves as deployments: ``serve.routes.Backend``. A call that is cancelled is cancelled there, too."""

    listener: DeploymentHandle
    transcriber: DeploymentHandle

    async def listen(self, recording: Recording, audio: BinaryIO) -> Listened:
        stored = await asyncio.to_thread(_store, audio)
        response = self.listener.listen.remote(recording, stored)
        return Listened(await _answer(response), response)

    async def transcribe(self, recording: Recording, handle: Any) -> Transcript:
        transcript: Transcript = await _answer(self.transcriber.transcribe.remote(recording, handle))
        return transcript

    async def stream(self, recording: Recording, handle: Any) -> AsyncGenerator[ClipTranscript, None]:
        clips = self.transcriber.options(stream=True).stream.remote(recording, handle)
        try:
            with _errors_of_serve():
                async for clip in clips:
                    yield _value(clip)
        except (asyncio.CancelledError, GeneratorExit):
            clips.cancel()
            raise


async def _answer(response: DeploymentResponse) -> Any:
    """What a deployment answers, an error raised."""
    try:
        with _errors_of_serve():
            return _value(await response)
    except asyncio.CancelledError:
        response.cancel()
        raise


def _value(answer: Answer | RayscribeError) -> Answer:
    if isinstance(answer, RayscribeError):
        raise answer
    return answer


@contextlib.contextmanager
def _errors_of_serve() -> Iterator[None]:
    """Raises what Serve and Ray raise as what it means to a client."""
    try:
        yield
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise RequestError("overloaded", "no replica can take the request; try again in a moment") from error
    except RayActorError as error:
        raise EngineDied(
            "replica_died", "the process that worked on the request has died and is being replaced; try again"
        ) from error


def _store(audio: BinaryIO) -> ray.ObjectRef:
    """A file's bytes in Ray's object store, copied from the disk's cache and never through Python's memory."""
    audio.flush()
    if not os.fstat(audio.fileno()).st_size:  # nothing can be mapped
        return ray.put(np.empty(0, np.uint8))
    return ray.put(np.frombuffer(mmap.mmap(audio.fileno(), 0, access=mmap.ACCESS_READ), np.uint8))


def _leave(died: EngineDied) -> NoReturn:
    """So no request is sent to an engine that is dead, and those that it had are answered 503 by the Endpoint."""
    log.error("leaving the process: %s", died)
    kill_children_and_exit()


def build(settings: ServeSettings) -> serve.Application:
    """The application, for ``serve run serve.app:build model=…`` and Serve configs (``serve/config.yaml``).

    Raises:
        UsageError: as of ``preflight``.
    """
    preflight(settings.engine_config, loads_here=False)
    on_cluster = settings.cluster.model_copy(update={"address": "auto"})
    return application(settings, cluster_layout(on_cluster))


def application(settings: ServeSettings, layout: Layout, start: EngineStarter = start_engine) -> serve.Application:
    """The application, laid out.

    Args:
        settings: what it is told.
        layout: how many replicas there are at most, and what each takes.
        start: what starts an engine in its replica; another than ``start_engine`` where the endpoint itself is
            to be tested without a model.
    """
    ending = {"graceful_shutdown_timeout_s": settings.drain_s, "health_check_period_s": HEALTH_CHECK_S}
    listener = serve.deployment(
        name="Listener",
        max_ongoing_requests=LISTENER_QUEUE,
        ray_actor_options={"num_cpus": 1},
        autoscaling_config=AutoscalingConfig(
            min_replicas=1, max_replicas=layout.listeners, target_ongoing_requests=2, upscale_delay_s=2
        ),
        **ending,
    )(ListenerReplica)
    transcriber = serve.deployment(
        name="Transcriber",
        max_ongoing_requests=UNBOUNDED,
        max_constructor_retry_count=3,
        ray_actor_options=_engine_resources(layout),
        autoscaling_config=_engines(settings, layout.engines),
        **ending,
    )(TranscriberReplica)
    endpoint = serve.deployment(
        name="Endpoint",
        # Well above the places that there are: whom there is no place for is told so here, in OpenAI's words.
        max_ongoing_requests=10 * settings.max_requests,
        ray_actor_options={"num_cpus": 0},
        **ending,
    )(serve.ingress()(EndpointReplica))
    return endpoint.bind(settings, listener.bind(settings), transcriber.bind(settings, start))


def _engines(settings: ServeSettings, most: int) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=most if settings.min_engines is None else min(settings.min_engines, most),
        max_replicas=most,
        downscale_delay_s=settings.engine_idle_s,
        policy=AutoscalingPolicy(policy_function=ByQueuedAudio, policy_kwargs={"target_s": settings.queued_audio_s}),
    )


def _engine_resources(layout: Layout) -> dict[str, Any]:
    return {
        "num_cpus": layout.cpus_per_engine,
        "num_gpus": layout.gpus_per_engine,
        "runtime_env": layout.engine_runtime_env,
    }
