"""Contenders that transcribe the same clips, each in a process of its own, round by round in turn.

A contender may run by another interpreter, in whose environment the peer is installed: what it imports of this
repository (this module) needs no more than the standard library and NumPy. It loads its model, reads the clips, and
answers each line on its standard input with a line of JSON; what libraries print goes to its standard error.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import numpy as np

SAMPLE_RATE = 16_000  # as in speech.audio, which another interpreter may lack packages to import

Clips = Sequence[np.ndarray]  # int16 mono at 16 kHz, each of shape (samples,)


@dataclass(frozen=True)
class Answer:
    """What a contender made of all clips, in their order.

    Attributes:
        tokens: of all texts; 0 where they are not counted.
        seconds: of its work, where other than from the call to the return.
    """

    texts: list[str]
    tokens: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Round:
    texts: list[str]
    tokens: int
    seconds: float


def save_clips(folder: str, clips: Clips) -> str:
    path = str(Path(folder, "clips.npz"))
    np.savez(path, *clips)
    return path


def load_clips(path: str) -> list[np.ndarray]:
    with np.load(path) as saved:
        return [saved[f"arr_{number}"] for number in range(len(saved.files))]


def waveform(samples: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1)."""
    return samples.astype(np.float32) / 32768.0


def compete(load: Callable[[], Callable[[], Answer]]) -> None:
    """The contender's side: loads, warms up by a round, then transcribes once for each line on standard input."""
    with os.fdopen(os.dup(1), "w") as parent:
        os.dup2(2, 1)
        try:
            transcribe = load()
        except ImportError as error:
            _write(parent, {"skipped": f"{error.name or error} is not installed"})
            return
        transcribe()
        _write(parent, {"ready": True})
        for _ in sys.stdin:
            start = time.perf_counter()
            answer = transcribe()
            seconds = answer.seconds or time.perf_counter() - start
            _write(parent, {"texts": answer.texts, "tokens": answer.tokens, "seconds": seconds})


def _write(parent: TextIO, line: dict[str, Any]) -> None:
    parent.write(json.dumps(line) + "\n")
    parent.flush()


@dataclass
class Contender:
    """The side of who measures. ``command`` runs a program that calls ``compete``."""

    name: str
    command: list[str]
    rounds: list[Round] = field(default_factory=list)
    skipped: str = ""

    def start(self) -> None:
        """Starts it and waits until it is ready.

        Raises:
            SystemExit: it has failed, other than for want of a package.
        """
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when it has failed, closed in stop
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.skipped = self._answer().get("skipped", "")

    def transcribe(self) -> None:
        """Runs one round."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.rounds.append(Round(**self._answer()))

    def stop(self) -> None:
        self._process.communicate()  # the end of its input ends it
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            errors = self._errors.read()
            if (last := errors.strip().rpartition("\n")[2]).startswith("ModuleNotFoundError"):
                return {"skipped": last}
            raise SystemExit(f"{self.name} has failed:\n{errors[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def run_in_turns(contenders: Sequence[Contender], rounds: int) -> list[Contender]:
    """Runs all, and returns those that were not skipped."""
    started: list[Contender] = []
    try:
        for contender in contenders:
            if not contender.skipped:
                started.append(contender)
                contender.start()
        running = [contender for contender in started if not contender.skipped]
        for _ in range(rounds):
            for contender in running:
                contender.transcribe()
        return running
    finally:
        for contender in started:
            contender.stop()


def figures(contender: Contender, ours: Contender, audio_s: float) -> dict[str, Any]:
    """Medians over the rounds; the ratio is the median of the rounds' ratios, of RTFx, ours over theirs."""
    pairs = zip(ours.rounds, contender.rounds, strict=True)
    return {
        "contender": contender.name,
        "rtfx": round(median(audio_s / each.seconds for each in contender.rounds), 2),
        "ours_over_it": round(median(theirs.seconds / our.seconds for our, theirs in pairs), 3),
        "tokens": contender.rounds[0].tokens,
    }
