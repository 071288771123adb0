"""The Listener's child process: what it answers, and what it costs when it dies."""

import asyncio
import errno
import io
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from serve.app import ListenerReplica
from serve.growing_file import LocalFile
from serve.listener_process import ListenerProcess, ListenerSettings, _answers, _cause
from serve.settings import ServeSettings
from speech.errors import AudioError
from speech.listener import Listener, ListenResult, join_parts
from speech.recording import Options, Recording
from testing.synthetic_audio import RATE, sndfile
from tests.serve.conftest import eventually
from tests.serve.direct import CALL, MODEL

RECORDING = Recording(id="one", audio="call.wav", speakers=("agent", "customer"), metadata={"queue": "7"})
LIMIT_S = 60.0


def as_array(audio: bytes) -> np.ndarray:
    return np.frombuffer(audio, np.uint8)


# Eight minutes of noise on eight channels: decoded for longer than the tests wait.
LONG = as_array(sndfile(np.random.default_rng(0).normal(0, 0.1, (4_000_000, 8)), "WAV", "PCM_16"))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[ListenerProcess]:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    process = ListenerProcess(ListenerSettings(clip_s=30.0, max_duration_s=3600.0, max_channel_s=14400.0))
    yield process
    process.close()


@pytest.fixture
def child(process: ListenerProcess) -> int:
    """The pid of a child that has answered once."""
    listen(process, RECORDING, as_array(CALL), LIMIT_S)
    return process._child._process.pid


def listen(process: ListenerProcess, recording: Recording, audio: np.ndarray, limit_s: float) -> ListenResult:
    return join_parts(list(process.stream(recording, audio, limit_s)))


def refused(process: ListenerProcess, audio: np.ndarray, limit_s: float = LIMIT_S) -> AudioError:
    with pytest.raises(AudioError) as caught:
        listen(process, RECORDING, audio, limit_s)
    return caught.value


def test_it_answers_what_a_listener_answers(process: ListenerProcess, tmp_path: Path) -> None:
    (tmp_path / "call.wav").write_bytes(CALL)
    for options, duration in ((Options(), None), (Options(channels="mix"), 2.5)):
        recording = RECORDING.model_copy(update={"options": options, "offset": 0.5, "duration": duration})
        expected = Listener(clip_s=30.0).listen(recording, tmp_path / "call.wav")
        listened = listen(process, recording, as_array(CALL), LIMIT_S)
        assert listened.duration_s == expected.duration_s
        assert listened.speech_s == expected.speech_s
        assert listened.channels == expected.channels
        assert listened.flags == expected.flags
        for clip, same in zip(listened.clips, expected.clips, strict=True):
            assert (clip.channel, clip.start_s, clip.end_s) == (same.channel, same.start_s, same.end_s)
            assert np.array_equal(clip.samples, same.samples)


def test_it_reads_a_file_of_this_machine(process: ListenerProcess) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(CALL)
        parts = list(process.stream(RECORDING, LocalFile.of(file, len(CALL)), LIMIT_S))
    assert len(join_parts(parts).clips) == len(listen(process, RECORDING, as_array(CALL), LIMIT_S).clips)


def test_errors_are_those_of_the_listener(process: ListenerProcess) -> None:
    assert refused(process, as_array(b"RIFF\0\0\0\0WAVE" + b"not audio " * 99)).code == "unreadable"
    assert refused(process, as_array(b"")).code == "empty"
    assert listen(process, RECORDING, as_array(CALL), LIMIT_S).clips


def test_the_child_has_limits_and_no_credentials(child: int) -> None:
    environment = Path(f"/proc/{child}/environ").read_text()
    assert "PATH=" in environment
    assert "AWS" not in environment
    assert "secret" not in environment
    assert 0 < resource.prlimit(child, resource.RLIMIT_AS)[0] < 4 << 30
    assert 0 < resource.prlimit(child, resource.RLIMIT_CPU)[0] < LIMIT_S + 60
    assert resource.prlimit(child, resource.RLIMIT_CORE) == (0, 0)


@pytest.mark.parametrize("sent", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_costs_one_request(process: ListenerProcess, child: int, sent: signal.Signals) -> None:
    decoding = psutil.Process(child)
    idle_s = decoding.cpu_times().user

    def crash() -> None:
        eventually(lambda: decoding.cpu_times().user > idle_s + 0.2)
        decoding.send_signal(sent)

    threading.Thread(target=crash).start()
    error = refused(process, LONG)
    assert error.code == "poison"
    assert sent.name in error.message
    assert listen(process, RECORDING, as_array(CALL), LIMIT_S).clips


def test_a_child_that_dies_idle_is_replaced(process: ListenerProcess, child: int) -> None:
    os.kill(child, signal.SIGKILL)
    eventually(lambda: process._child.exit_code is not None)
    assert listen(process, RECORDING, as_array(CALL), LIMIT_S).clips


def test_a_recording_that_needs_too_much_memory_is_refused(process: ListenerProcess, child: int) -> None:
    mapped = int(Path(f"/proc/{child}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(child, resource.RLIMIT_AS, (mapped, mapped))
    # The message depends on which allocation fails: C libraries may end the process themselves.
    assert refused(process, LONG).code == "poison"
    assert listen(process, RECORDING, as_array(CALL), LIMIT_S).clips


@pytest.mark.parametrize("failed", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_a_failed_allocation_ends_the_child(monkeypatch: pytest.MonkeyPatch, failed: Exception) -> None:
    def stream(*_: object) -> None:
        raise failed

    listener = Listener(clip_s=30.0)
    monkeypatch.setattr(listener, "stream", stream)
    with pytest.raises(SystemExit) as exit_:
        next(_answers(listener, RECORDING, io.BytesIO()))
    assert isinstance(exit_.value.code, int)
    assert _cause(exit_.value.code) == "out of memory"


def test_a_recording_that_decodes_too_long_is_refused(process: ListenerProcess, child: int) -> None:
    error = refused(process, LONG, limit_s=0.5)
    assert error.code == "listen_timeout"
    assert not Path(f"/proc/{child}").exists()
    assert listen(process, RECORDING, as_array(CALL), LIMIT_S).clips


@pytest.mark.parametrize("channels", [2, 8])
def test_channels_times_seconds_are_limited(channels: int) -> None:
    settings = ListenerSettings(clip_s=30.0, max_duration_s=1200.0, max_channel_s=2 * 1200.0)
    process = ListenerProcess(settings)
    silence = sndfile(np.zeros((1000 * RATE, channels), np.float32), "WAV", "PCM_16")
    try:
        if channels == 2:
            assert listen(process, RECORDING, as_array(silence), LIMIT_S).duration_s == 1000
        else:
            assert refused(process, as_array(silence)).code == "too_long"
    finally:
        process.close()


class Asked:
    """In place of a replica's ListenerProcess: what was asked of it."""

    def __init__(self) -> None:
        self.limit_s = 0.0
        self.started, self.killed = threading.Event(), threading.Event()

    def stream(self, recording: Recording, audio: np.ndarray, limit_s: float) -> Iterator[Any]:
        self.limit_s = limit_s
        self.started.set()
        self.killed.wait(30)
        raise AudioError("poison", "killed")
        yield

    def kill(self) -> None:
        self.killed.set()

    close = kill


def replica_of(process: Any, **settings: Any) -> ListenerReplica:
    replica = ListenerReplica(ServeSettings.from_settings({"model": MODEL, **settings}))
    replica._process.close()
    replica._process = process
    return replica


async def parts_of(replica: ListenerReplica, audio: np.ndarray) -> list[Any]:
    return [part async for part in replica.listen(RECORDING, audio)]


@pytest.mark.parametrize(("size", "limit_s"), [(0, 5.0), (100_000, 15.0), (90_000_000, 600.0)])
def test_a_small_file_has_less_time_than_a_large_one(size: int, limit_s: float) -> None:
    process = Asked()
    process.killed.set()
    [answer] = asyncio.run(parts_of(replica_of(process), np.empty(size, np.uint8)))
    assert isinstance(answer, AudioError)
    assert process.limit_s == limit_s


def test_a_cancelled_request_ends_its_decoding() -> None:
    process = Asked()

    async def request() -> None:
        task = asyncio.create_task(parts_of(replica_of(process), np.empty(1, np.uint8)))
        await asyncio.to_thread(process.started.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert process.killed.is_set()

    asyncio.run(request())
