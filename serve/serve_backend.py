"""``serve.backend.Backend`` over two Ray Serve deployments.

On one machine the Listener reads an upload from the file that it arrives in; on a cluster it is copied once, from disk
into Ray's object store. The Listener replica answers with a summary and a
reference to its result, which is resolved in the Transcriber replica: samples never enter the Endpoint. The
replica that put the result owns it; where the replica dies first, the reference is lost, and the request is
answered ``replica_died`` (503) as for any other replica that dies.
"""

import asyncio
import contextlib
import mmap
import os
from collections.abc import AsyncGenerator, Iterator
from typing import Any, BinaryIO, TypeVar

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from serve.backend import ListenSummary
from serve.growing_file import LocalFile
from speech.errors import EngineDied, RayscribeError, RequestError
from speech.recording import Recording
from speech.transcriber import ClipTranscript

Answer = TypeVar("Answer")


class ServeBackend:
    """Listener and Transcriber as deployments. A call that is cancelled here is cancelled in its replica."""

    def __init__(self, listener: DeploymentHandle, transcriber: DeploymentHandle, *, local: bool = False) -> None:
        self.local = local
        # Here, not at the first request: "options" makes a handle connect to its replicas. It asks Serve's controller
        # and Ray's head for them, which may be lost when a request comes.
        self._listener = listener.options(stream=True)
        self._transcriber = transcriber
        self._streaming = transcriber.options(stream=True)

    async def listen(self, recording: Recording, audio: BinaryIO, size: int) -> AsyncGenerator[ListenSummary, None]:
        source = LocalFile.of(audio, size) if self.local else await asyncio.to_thread(_put_file, audio)
        async for summary in _items(self._listener.listen.remote(recording, source)):
            yield summary

    async def detect_language(self, recording: Recording, handle: Any, *, live: bool = False) -> Recording:
        told: Recording = await _result(self._transcriber.detect_language.remote(recording, handle, live))
        return told

    async def transcribe(self, recording: Recording, handle: Any) -> list[ClipTranscript]:
        clips: list[ClipTranscript] = await _result(self._transcriber.transcribe.remote(recording, handle))
        return clips

    async def stream(
        self, recording: Recording, handle: Any, *, live: bool = False
    ) -> AsyncGenerator[ClipTranscript, None]:
        async for clip in _items(self._streaming.stream.remote(recording, handle, live)):
            yield clip


async def _items(response: DeploymentResponseGenerator) -> AsyncGenerator[Any, None]:
    """A deployment's answers; an error that is among them as a value is raised."""
    try:
        with _map_serve_errors():
            async for item in response:
                yield _raise_error(item)
    except (asyncio.CancelledError, GeneratorExit):
        response.cancel()
        raise


async def _result(response: DeploymentResponse) -> Any:
    """A deployment's answer; an error that is returned as a value is raised."""
    try:
        with _map_serve_errors():
            return _raise_error(await response)
    except asyncio.CancelledError:
        response.cancel()
        raise


def _raise_error(answer: Answer | RayscribeError) -> Answer:
    if isinstance(answer, RayscribeError):
        raise answer
    return answer


@contextlib.contextmanager
def _map_serve_errors() -> Iterator[None]:
    """Maps exceptions of Serve and Ray to ours.

    Raises:
        RequestError: ``overloaded``.
        EngineDied: ``replica_died``.
    """
    try:
        yield
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise RequestError("overloaded", "no replica can take the request; try again in a moment") from error
    except (RayActorError, ObjectLostError) as error:
        raise EngineDied(
            "replica_died", "the process that worked on the request has died and is being replaced; try again"
        ) from error


def _put_file(audio: BinaryIO) -> ray.ObjectRef:
    """Puts a file's bytes into Ray's object store, from the page cache and never through Python's heap."""
    audio.flush()
    if not os.fstat(audio.fileno()).st_size:  # mmap refuses an empty file
        return ray.put(np.empty(0, np.uint8))
    return ray.put(np.frombuffer(mmap.mmap(audio.fileno(), 0, access=mmap.ACCESS_READ), np.uint8))
