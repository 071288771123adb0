"""The deployments on Ray Serve, called from this process as the Endpoint calls them."""

import asyncio
import io
import os
import signal
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import psutil
import pytest
import ray
from ray import serve

from cluster.nodes import Node, plan_layout
from cluster.settings import ClusterConfig
from serve.app import application
from serve.backend import ListenSummary
from serve.serve_backend import ServeBackend
from serve.server import APP
from serve.settings import ServeSettings
from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.engines.fake import FakeEngine
from speech.errors import AudioError, EngineDied
from speech.listener import Listener, ListenResult
from speech.models.families import Family
from speech.recording import Recording
from testing.ports import free_port
from testing.synthetic_audio import RATE, sndfile
from tests.serve.conftest import MAX_WAIT_S, eventually
from tests.serve.direct import CALL, MODEL

RECORDING = Recording(id="one", audio="call.wav")
SUMMARY_BYTES = 2000  # as Ray serializes it; the samples of CALL are over a hundred times as much


class ForgetfulEngine(FakeEngine):
    """Keeps no requests: a reference to their samples would pin them in the object store."""

    async def decode(self, request: ClipRequest) -> DecodingResult:
        try:
            return await super().decode(request)
        finally:
            self.requests.clear()


def start_engine(config: EngineConfig, family: Family) -> FakeEngine:
    return ForgetfulEngine()


@pytest.fixture(scope="module")
def backend(ray_here: None) -> Iterator[ServeBackend]:
    serve.start(http_options={"port": free_port()})
    settings = ServeSettings.from_settings({"model": MODEL})
    serve.run(application(settings, plan_layout([Node(cpus=2, slots=6)], ClusterConfig()), start_engine), name=APP)
    yield ServeBackend(serve.get_deployment_handle("Listener", APP), serve.get_deployment_handle("Transcriber", APP))
    serve.shutdown()


async def listen(backend: ServeBackend, audio: BinaryIO) -> list[ListenSummary]:
    return [part async for part in backend.listen(RECORDING, audio, audio.seek(0, os.SEEK_END))]


def object_store_bytes() -> int:
    """Bytes of all objects in this node's object store."""
    from ray._private.internal_api import node_stats

    [node] = ray.nodes()
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    used: int = stats.store_stats.object_store_bytes_used
    return used


def serialized_bytes(value: Any) -> int:
    size: int = ray._private.worker.global_worker.get_serialization_context().serialize(value).total_bytes
    return size


def test_the_endpoint_receives_a_summary_and_a_reference_but_no_samples(backend: ServeBackend) -> None:
    before = object_store_bytes()
    expected = Listener(clip_s=30.0).listen(RECORDING, io.BytesIO(CALL))

    async def request() -> None:
        with tempfile.TemporaryFile() as audio:
            audio.write(CALL)
            [summary] = await listen(backend, audio)
        assert isinstance(summary.handle, ray.ObjectRef)
        assert summary.listened.duration_s == expected.duration_s
        assert serialized_bytes(summary) < SUMMARY_BYTES
        together = await backend.transcribe(RECORDING, summary.handle)
        assert [clip.segments[0].start_s for clip in together] == [round(clip.start_s, 3) for clip in expected.clips]
        clips = [clip async for clip in backend.stream(RECORDING, summary.handle)]
        assert len(clips) == len(expected.clips)
        listened = await summary.handle  # a reference to all of it
        assert isinstance(listened, ListenResult)
        assert sum(clip.samples.nbytes for clip in listened.clips) > 100 * SUMMARY_BYTES

    asyncio.run(request())
    eventually(lambda: object_store_bytes() <= before)


def listener_processes() -> dict[psutil.Process, float]:
    """The Listeners' processes, and the CPU time that each has used, in seconds."""
    # By ``info``, which is None of a process that has just ended, be it another program's.
    processes = [
        each for each in psutil.process_iter(["cmdline"]) if "serve.listener_process" in (each.info["cmdline"] or ())
    ]
    return {process: process.cpu_times().user for process in processes}


def test_a_decoder_that_crashes_fails_one_request(backend: ServeBackend) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (300 * RATE, 8))

    async def request() -> None:
        with tempfile.TemporaryFile() as long, tempfile.TemporaryFile() as short:
            long.write(sndfile(noise, "WAV", "PCM_16"))
            short.write(CALL)
            await listen(backend, short)
            await asyncio.to_thread(
                eventually, lambda: all(each.status() == "sleeping" for each in listener_processes())
            )
            before = listener_processes()

            def decoding() -> list[psutil.Process]:
                return [each for each, used_s in listener_processes().items() if used_s > before[each] + 0.5]

            listening = asyncio.create_task(listen(backend, long))
            [process] = await asyncio.to_thread(eventually, decoding)
            process.send_signal(signal.SIGSEGV)
            with pytest.raises(AudioError, match="SIGSEGV") as caught:
                await asyncio.wait_for(listening, MAX_WAIT_S)
            assert caught.value.code == "poison"
            for _ in range(4):  # on both replicas
                assert await listen(backend, short)

    asyncio.run(request())


async def transcribe_until_it_fails(backend: ServeBackend, handle: ray.ObjectRef) -> None:
    """Ray notices the owner's death after a moment."""
    while True:
        await backend.transcribe(RECORDING, handle)


def test_a_result_whose_listener_has_died_is_answered_replica_died(backend: ServeBackend) -> None:
    async def request() -> None:
        with tempfile.TemporaryFile() as audio:
            audio.write(CALL)
            [summary] = await listen(backend, audio)
        for name in [actor["name"] for actor in ray.util.list_named_actors(True) if "Listener" in actor["name"]]:
            ray.kill(ray.get_actor(name, namespace="serve"))
        with pytest.raises(EngineDied, match="replica_died"):
            await asyncio.wait_for(transcribe_until_it_fails(backend, summary.handle), MAX_WAIT_S)
        with pytest.raises(EngineDied, match="replica_died"):
            await anext(backend.stream(RECORDING, summary.handle))

    asyncio.run(request())
