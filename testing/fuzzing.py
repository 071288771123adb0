"""Damaged recordings of every format, decoded by a Listener in a process of its own.

Each file must be decoded or refused with a code of ``AudioError``; none may crash its process, hang, take more memory
than MEMORY_BYTES or raise another exception. A file depends on its number and the seed only, so that one that failed
can be made again.
"""

import io
import multiprocessing
import random
import resource
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from speech.errors import AUDIO_CODES, AudioError
from testing.audio_formats import COMPOSED, FORMATS

SAMPLES = Path(__file__).parent.parent / "demo" / "samples"
MAX_SAMPLE_BYTES = 200_000  # larger ones cost time and add no format
TIMEOUT_S = 30.0  # for one file; the slowest takes about a second
MEMORY_BYTES = 4 << 30
# The allowed outcomes of a file. ``internal`` and ``poison`` are the faults that fuzzing looks for.
OUTCOMES = {"decoded"} | AUDIO_CODES - {"internal", "poison"}
# Where most formats have their header: damage there has more effects than damage to samples.
_HEADER_BYTES = 256
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Failure:
    """A file with an outcome that is not allowed."""

    number: int
    source: str
    outcome: str


def intact_files() -> dict[str, bytes]:
    """The intact files that damaged ones are made from, by name."""
    made = {name: make() for name, (make, _) in FORMATS.items()} | {name: make() for name, make in COMPOSED.items()}
    samples = {
        path.name: path.read_bytes()
        for path in sorted(SAMPLES.glob("*"))
        if path.suffix not in (".jsonl", ".md") and 0 < path.stat().st_size <= MAX_SAMPLE_BYTES
    }
    return made | samples


def damaged_file(files: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """One damaged file, and the name of the intact file it was made from."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(sorted(files))
    data = bytearray(files[name])
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_DAMAGE)(data, rng)
    return name, bytes(data)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 8, 64))):
        if data:
            data[_position(data, rng)] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    at, size = _position(data, rng), rng.choice((4, 100, 5000))
    size = min(size, len(data) - at)
    data[at : at + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _position(data, rng)
    del data[at : at + rng.choice((1, 2, 100, 5000))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at, size = _position(data, rng), rng.choice((1, 2, 100, 5000))
    data[at:at] = data[at : at + size]


def _set_extreme(data: bytearray, rng: random.Random) -> None:
    """Overwrites four bytes of the header with an extreme integer, as a size, rate or channel count."""
    number = struct.pack(rng.choice(("<I", ">I")), rng.choice(_EXTREMES))
    at = rng.randrange(min(len(data), _HEADER_BYTES) + 1)
    data[at : at + 4] = number


def _position(data: bytearray, rng: random.Random) -> int:
    return rng.randrange(min(len(data), _HEADER_BYTES) if rng.random() < 0.5 else len(data)) if data else 0


_DAMAGE: Sequence[Callable[[bytearray, random.Random], None]] = (
    _truncate,
    _flip,
    _overwrite,
    _remove,
    _repeat,
    _set_extreme,
)


def fuzz(numbers: Sequence[int], seed: int, workers: int = 2) -> tuple[Counter[str], list[Failure]]:
    """Runs the files of these numbers; returns the count of each outcome, and the failures."""
    files, outcomes, failures = intact_files(), Counter[str](), list[Failure]()
    remaining = iter(numbers)
    lock = threading.Lock()

    def work() -> None:
        worker = _Worker()
        while True:
            with lock:
                number = next(remaining, None)
            if number is None:
                break
            source, data = damaged_file(files, seed, number)
            outcome = worker.run(data, as_path=number % 2 == 0)
            with lock:
                outcomes[outcome] += 1
                if outcome not in OUTCOMES:
                    failures.append(Failure(number, source, outcome))
        worker.stop()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes, sorted(failures, key=lambda failure: failure.number)


class _Worker:
    """A process with a Listener, restarted after a crash or a timeout."""

    def __init__(self) -> None:
        self._start()

    def run(self, data: bytes, as_path: bool) -> str:
        """The outcome of a file: decoded, an error code, or the failure."""
        self._pipe.send((data, as_path))
        try:
            if self._pipe.poll(TIMEOUT_S):
                return str(self._pipe.recv())
            outcome = f"hangs for {TIMEOUT_S:.0f} s"
        except EOFError:
            self._process.join()
            outcome = f"crashes: exit code {self._process.exitcode}"
        self.stop()
        self._start()
        return outcome

    def stop(self) -> None:
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_listen, args=(child_pipe,), daemon=True)
        self._process.start()
        child_pipe.close()
        self._pipe.recv()  # the process is ready; its start is not counted in the timeout


def _listen(pipe: Connection) -> None:
    from speech.listener import Listener, open_local
    from speech.recording import Recording

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = b""
    listener = Listener(clip_s=30, open_audio=lambda uri: io.BytesIO(data) if uri == "memory" else open_local(uri))
    pipe.send("ready")
    with tempfile.NamedTemporaryFile(prefix="fuzz-") as file:
        while True:
            data, as_path = pipe.recv()
            Path(file.name).write_bytes(data)
            try:
                listener.listen(Recording(id="fuzz", audio=file.name if as_path else "memory"))
                pipe.send("decoded")
            except AudioError as error:
                pipe.send(error.code)
            except BaseException as error:  # also MemoryError, which is one of the failures looked for
                pipe.send(f"{type(error).__name__}: {error}")
