"""A Listener in a child process: what strangers upload is parsed where a crash costs one request.

Decoders are written in C. The child has limits on memory, CPU time and wall time; when it dies, or reaches one, another
takes its place. Its environment holds no credentials, and its answers are parsed as data, never unpickled.

    request    a line of JSON on stdin: the recording, and where its audio is: a file of this machine, or the one that
               both processes have open
    answers    of each part a line of JSON on stdout, ``_Answer``, and the samples of its clips; one line at the end

Limit: the child runs as the same user, with the same files and network. Those a container restricts.
"""

import contextlib
import errno
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, BinaryIO, Self

import numpy as np
from pydantic import BaseModel, Field

from serve.growing_file import LocalFile
from speech.audio import SAMPLE_RATE
from speech.audio.clips import Clip
from speech.errors import AUDIO_CODES, AudioError
from speech.listener import Listener, ListenResult
from speech.recording import Options, Recording

# Of address space: what libraries and a file's blocks take (measured: 0.4 GiB), and the samples of the longest
# recording, int16, twice.
BASE_BYTES = 2 << 30
BYTES_PER_CHANNEL_S = 2 * 2 * SAMPLE_RATE
# For imports and the VAD's session where all cores are busy.
START_S = 120.0
# From the end of a child's answers to its exit.
EXIT_S = 2.0
# What Python and its libraries need of the environment.
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_READY = b"ready\n"

log = logging.getLogger("rayscribe")


class ListenerSettings(BaseModel):
    """Of the child's Listener: its arguments."""

    clip_s: float
    max_duration_s: float
    max_channel_s: float


class ListenerProcess:
    """Runs a Listener in a child process, for one recording at a time."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self._audio = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        self._child = _Child(settings, self._audio)

    def stream(self, recording: Recording, audio: np.ndarray | LocalFile, limit_s: float) -> Iterator[ListenResult]:
        """As ``Listener.stream``, of an upload. Who stops before its end must ``kill``.

        Args:
            recording: its range and options; ``audio`` is its name in messages.
            audio: its file, or the bytes of it, uint8.
            limit_s: the child is killed when this time has passed.

        Raises:
            AudioError: as of ``Listener.stream``; ``listen_timeout``; ``poison`` if the child died.
        """
        file = audio if isinstance(audio, LocalFile) else None
        size = audio.nbytes if isinstance(audio, np.ndarray) else audio.size
        if isinstance(audio, np.ndarray):
            self._audio.seek(0)
            self._audio.truncate()
            self._audio.write(audio.data)
            self._audio.flush()
        if self._child.exit_code is not None:  # killed while it was idle
            self._child = _Child(self._settings, self._audio)
        child = self._child
        child.wait_ready()
        start = time.monotonic()
        try:
            yield from child.exchange(recording, file, limit_s)
        except AudioError:
            raise
        except (OSError, ValueError) as error:  # it has died, or its answer is malformed
            child.end()
            self._child = _Child(self._settings, self._audio)
            if time.monotonic() - start >= limit_s:
                raise AudioError(
                    "listen_timeout", f"{recording.audio} took over {limit_s:.0f} s to decode, the limit for its size"
                ) from error
            cause = _cause(child.exit_code)
            log.error("decoding %d bytes has ended the Listener's process: %s", size, cause)
            raise AudioError(
                "poison", f"decoding {recording.audio} has ended the process that decodes ({cause})"
            ) from error

    def kill(self) -> None:
        """Ends the recording in progress, from another thread: its ``stream`` raises ``poison``."""
        self._child.kill()

    def close(self) -> None:
        self._child.kill()
        self._audio.close()


class _Child:
    """The parent's side of one child process. It starts at once and becomes ready later."""

    def __init__(self, settings: ListenerSettings, audio: BinaryIO) -> None:
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serve.listener_process", settings.model_dump_json(), str(audio.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | {"PYTHONPATH": path},
            pass_fds=[audio.fileno()],
            cwd="/",
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._ready = False

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Lets a child that is exiting exit, with its own code, and kills any other."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_S)
        self.kill()

    def wait_ready(self) -> None:
        """Returns when the child can take a recording.

        Raises:
            RuntimeError: it does not start; its stderr says why.
        """
        if not self._ready:
            with self._killed_after(START_S):
                self._ready = self._answers.readline() == _READY
        if not self._ready:
            raise RuntimeError("the Listener's process does not start")

    def exchange(self, recording: Recording, file: LocalFile | None, limit_s: float) -> Iterator[ListenResult]:
        """Sends a recording and yields its answers.

        Args:
            recording: what is asked for.
            file: its audio; None where it is in the file that both processes have open.
            limit_s: as of ``ListenerProcess.stream``.

        Raises:
            AudioError: the child's answer.
            OSError, ValueError: the child has died, or its answer is malformed.
        """
        with self._killed_after(limit_s):
            self._requests.write(_Request.of(recording, file, limit_s).model_dump_json().encode() + b"\n")
            self._requests.flush()
            while not (answer := _Answer.model_validate_json(self._answers.readline())).end:
                if answer.error:
                    raise answer.error.raised()
                yield answer.result(self._answers)

    @contextlib.contextmanager
    def _killed_after(self, limit_s: float) -> Iterator[None]:
        timer = threading.Timer(limit_s, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class _Request(BaseModel):
    recording: Recording
    file: LocalFile | None
    limit_s: float

    @classmethod
    def of(cls, recording: Recording, file: LocalFile | None, limit_s: float) -> Self:
        """What a Listener needs of a recording; keywords and metadata stay here."""
        options = Options(channels=recording.options.channels, raw_format=recording.options.raw_format)
        reduced = Recording(
            id=recording.id,
            audio=recording.audio,
            offset=recording.offset,
            duration=recording.duration,
            speakers=recording.speakers,
            options=options,
        )
        return cls(recording=reduced, file=file, limit_s=limit_s)


class _Error(BaseModel):
    code: str
    message: str

    def raised(self) -> AudioError:
        return AudioError(self.code if self.code in AUDIO_CODES else "internal", self.message)


class _ClipHeader(BaseModel):
    channel: int
    start_s: float
    end_s: float
    samples: int = Field(ge=0)


class _Answer(BaseModel):
    """A part as a ``ListenResult``, its samples apart; or an error; or the end."""

    duration_s: float = 0.0
    speech_s: float = 0.0
    channels: int = 0
    clips: list[_ClipHeader] = []
    flags: tuple[str, ...] = ()
    error: _Error | None = None
    end: bool = False

    @classmethod
    def of(cls, listened: ListenResult) -> Self:
        return cls(
            duration_s=listened.duration_s,
            speech_s=listened.speech_s,
            channels=listened.channels,
            clips=[
                _ClipHeader(channel=clip.channel, start_s=clip.start_s, end_s=clip.end_s, samples=len(clip.samples))
                for clip in listened.clips
            ],
            flags=listened.flags,
        )

    def result(self, source: IO[bytes]) -> ListenResult:
        """Reads the samples.

        Raises:
            ValueError: ``source`` ends before they do.
        """
        clips = []
        for clip in self.clips:
            samples = np.frombuffer(source.read(2 * clip.samples), np.int16)
            if len(samples) < clip.samples:
                raise ValueError("the samples end early")
            clips.append(Clip(clip.channel, clip.start_s, clip.end_s, samples))
        return ListenResult(self.duration_s, self.speech_s, self.channels, clips, self.flags)


def _cause(exit_code: int | None) -> str:
    if exit_code == errno.ENOMEM:
        return "out of memory"
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"


def main(settings: ListenerSettings, audio_descriptor: int) -> None:
    """The child: answers requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the parent decides
    memory = BASE_BYTES + round(BYTES_PER_CHANNEL_S * settings.max_channel_s)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold audio
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is not an answer
    listener = Listener(**settings.model_dump())
    audio = os.fdopen(audio_descriptor, "rb", buffering=0)
    answers.write(_READY)
    answers.flush()
    for line in sys.stdin.buffer:
        request = _Request.model_validate_json(line)
        _limit_cpu(request.limit_s)
        with request.file.open() if request.file else contextlib.nullcontext(audio) as source:
            for answer, clips in _answers(listener, request.recording, source):
                answers.write(answer.model_dump_json().encode() + b"\n")
                for clip in clips:
                    answers.write(clip.samples.data)
                answers.flush()


def _limit_cpu(limit_s: float) -> None:
    """Limits CPU time from now on: a child that loops ends even where its parent has gone and cannot kill it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + limit_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _answers(listener: Listener, recording: Recording, audio: BinaryIO) -> Iterator[tuple[_Answer, list[Clip]]]:
    """All answers to a request, with the clips of each."""
    try:
        for part in listener.stream(recording, audio):
            yield _Answer.of(part), part.clips
        yield _Answer(end=True), []
        return
    except AudioError as error:
        code, message = error.code, error.message
    except Exception as unforeseen:  # a bug must fail one request
        if isinstance(unforeseen, MemoryError) or getattr(unforeseen, "errno", None) == errno.ENOMEM:
            sys.exit(errno.ENOMEM)  # what a library holds after a failed allocation is unknown
        log.exception("decoding an upload")
        code, message = "internal", f"{type(unforeseen).__name__}: {unforeseen}"
    yield _Answer(error=_Error(code=code, message=message)), []


if __name__ == "__main__":
    main(ListenerSettings.model_validate_json(sys.argv[1]), int(sys.argv[2]))
