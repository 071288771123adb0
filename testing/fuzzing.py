"""Damaged recordings of every format, given to a Listener in a process of its own.

Each file must be decoded or refused with a code of ``AudioError``; none may crash its process, hang, take more memory
than MEMORY_BYTES or end in an exception of another kind. What a file is depends on its number and the seed alone, so
that one which fails can be made again.
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
from testing.audio_formats import FORMATS

SAMPLES = Path(__file__).parent.parent / "demo" / "samples"
MAX_SAMPLE_BYTES = 200_000  # longer ones cost time and add no format
LIMIT_S = 30.0  # for one file; the longest takes about a second
MEMORY_BYTES = 4 << 30
# What one file may end as. ``internal`` and ``poison`` are what this is here to find.
ANSWERS = {"heard"} | AUDIO_CODES - {"internal", "poison"}
# Where headers are, in most formats; what is changed here does more than what is changed among samples.
_HEADER_BYTES = 256
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Failure:
    """A file that was not answered as it should be."""

    number: int
    source: str
    what: str


def sources() -> dict[str, bytes]:
    """The whole files that broken ones are made of, by name."""
    made = {name: make() for name, (make, _) in FORMATS.items()}
    given = {
        path.name: path.read_bytes()
        for path in sorted(SAMPLES.glob("*"))
        if path.suffix not in (".jsonl", ".md") and 0 < path.stat().st_size <= MAX_SAMPLE_BYTES
    }
    return made | given


def broken(files: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """One broken file, and the name of what it was made of."""
    chance = random.Random(f"{seed}/{number}")
    name = chance.choice(sorted(files))
    data = bytearray(files[name])
    for _ in range(chance.choice((1, 1, 2, 4))):
        chance.choice(_DAMAGES)(data, chance)
    return name, bytes(data)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 8, 64))):
        if data:
            data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _overwrite(data: bytearray, chance: random.Random) -> None:
    at, size = _place(data, chance), chance.choice((4, 100, 5000))
    size = min(size, len(data) - at)
    data[at : at + size] = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))


def _remove(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    del data[at : at + chance.choice((1, 2, 100, 5000))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    at, size = _place(data, chance), chance.choice((1, 2, 100, 5000))
    data[at:at] = data[at : at + size]


def _exaggerate(data: bytearray, chance: random.Random) -> None:
    """Puts a number where a header may count something: sizes, rates, channels."""
    number = struct.pack(chance.choice(("<I", ">I")), chance.choice(_EXTREMES))
    at = chance.randrange(min(len(data), _HEADER_BYTES) + 1)
    data[at : at + 4] = number


def _place(data: bytearray, chance: random.Random) -> int:
    return chance.randrange(min(len(data), _HEADER_BYTES) if chance.random() < 0.5 else len(data)) if data else 0


_DAMAGES: Sequence[Callable[[bytearray, random.Random], None]] = (
    _cut,
    _flip,
    _overwrite,
    _remove,
    _repeat,
    _exaggerate,
)


def fuzz(numbers: Sequence[int], seed: int, workers: int = 2) -> tuple[Counter[str], list[Failure]]:
    """Tries the files of these numbers; returns how they were answered, and what failed."""
    files, answers, failures = sources(), Counter[str](), list[Failure]()
    todo = iter(numbers)
    taking = threading.Lock()

    def try_some() -> None:
        worker = _Worker()
        while True:
            with taking:
                number = next(todo, None)
            if number is None:
                break
            source, data = broken(files, seed, number)
            answer = worker.answer(data, as_path=number % 2 == 0)
            with taking:
                answers[answer] += 1
                if answer not in ANSWERS:
                    failures.append(Failure(number, source, answer))
        worker.stop()

    threads = [threading.Thread(target=try_some) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, sorted(failures, key=lambda failure: failure.number)


class _Worker:
    """A process that listens, and is started anew when a file has taken it down."""

    def __init__(self) -> None:
        self._start()

    def answer(self, data: bytes, as_path: bool) -> str:
        """The answer to a file: heard, a code, or how it went wrong."""
        self._pipe.send((data, as_path))
        try:
            if self._pipe.poll(LIMIT_S):
                return str(self._pipe.recv())
            answer = f"hangs for {LIMIT_S:.0f} s"
        except EOFError:
            self._process.join()
            answer = f"crashes: exit code {self._process.exitcode}"
        self.stop()
        self._start()
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_listen, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it is ready: what follows is the file's time


def _listen(pipe: Connection) -> None:
    from speech.listener import Listener, open_local
    from speech.recording import Recording

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    held = b""
    listener = Listener(clip_s=30, open_audio=lambda uri: io.BytesIO(held) if uri == "held" else open_local(uri))
    pipe.send("ready")
    with tempfile.NamedTemporaryFile(prefix="fuzz-") as file:
        while True:
            held, as_path = pipe.recv()
            Path(file.name).write_bytes(held)
            try:
                listener.listen(Recording(id="fuzz", audio=file.name if as_path else "held"))
                pipe.send("heard")
            except AudioError as error:
                pipe.send(error.code)
            except BaseException as error:  # MemoryError too: it is what is looked for
                pipe.send(f"{type(error).__name__}: {error}")
