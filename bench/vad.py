"""Segment quality of the VAD: missed speech, false speech and errors of boundaries, over made calls.

    python -m bench.vad [--calls 30] [--seed 0]

Utterances of the sample calls (demo/samples) are placed at known times on one channel, with a disturbance: noise of
several levels, a low level, tones of a telephone network, or another voice as crosstalk 35 dB down. Each call is
written in every codec. What is compared, each with the segmenter's settings:

    export           the wheel's sequence export in onnxruntime, in calls of 125 windows
    rayscribe        speech.audio.vad
    faster-whisper   its get_speech_timestamps

Missed: share of the speech outside all regions. False: share of the time further than half a second from speech that
is inside one. Boundary: median distance of a region's start and end, with its padding, from the utterance's. Last,
one line of JSON.
"""

import argparse
import importlib.util
import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
from faster_whisper.vad import get_speech_timestamps
from rich.console import Console
from rich.table import Table

from bench.channels import CODECS, utterances
from bench.listener import CLIP_S, VAD_OPTIONS
from speech.audio import SAMPLE_RATE
from speech.audio.decoding import open_audio, resampled
from speech.audio.segmenting import Segmenter
from speech.audio.silero import Silero, State, load_silero
from speech.audio.vad import SpeechDetector
from testing.synthetic_audio import RATE

Spans = list[tuple[float, float]]  # starts and ends, in seconds
SPEECH_DB = -26.0  # dBFS, of an utterance
DISTURBANCES = ("none", "noise -65 dBFS", "noise -50 dBFS", "noise -40 dBFS", "level -15 dB", "tones", "crosstalk")
NEAR_S = 0.5
STEPS = 100  # of time, a second
BLOCK = 4 * SAMPLE_RATE


class Export(Silero):
    """The network as the wheel has it."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("silero_vad")
        assert package is not None
        assert package.origin is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        super().__init__(
            onnxruntime.InferenceSession(
                str(Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"), options
            )
        )

    def __call__(self, windows: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        feed = {"input": np.ascontiguousarray(windows), "h": state[0], "c": state[1]}
        probabilities, hidden, cell = self._session.run(("speech_probs", "hn", "cn"), feed)
        return probabilities, (hidden, cell)


class CallMaker:
    """Makes calls of one channel at 8 kHz, and the times of their utterances; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._voices = [[_trimmed(utterance) for utterance in voice] for voice in utterances()]
        self._rng = np.random.default_rng(seed)

    def call(self, disturbance: str) -> tuple[np.ndarray, Spans]:
        voice, other = self._rng.choice(len(self._voices), 2, replace=False)
        samples, spans = self._turns(self._voices[voice])
        if disturbance.startswith("noise"):
            samples += _gain(float(disturbance.split()[1])) * self._rng.standard_normal(len(samples))
        elif disturbance == "level -15 dB":
            samples *= _gain(-15)
        elif disturbance == "tones":
            seconds = np.arange(len(samples)) / RATE
            samples += 0.05 * np.sin(2 * np.pi * 425 * seconds) * (seconds % 5 < 1)
        elif disturbance == "crosstalk":
            others, _ = self._turns(self._voices[other])
            samples += _gain(-35) * np.resize(others, len(samples))
        if disturbance != "none":  # the noise floor of a line
            samples += _gain(-70) * self._rng.standard_normal(len(samples))
        return samples.astype(np.float32), spans

    def _turns(self, voice: list[np.ndarray]) -> tuple[np.ndarray, Spans]:
        parts, spans, at = [], [], 0
        for utterance in self._rng.permutation(np.array(voice, dtype=object))[:6]:
            pause = np.zeros(round(self._rng.uniform(1.5, 5.0) * RATE))
            words = np.asarray(utterance, np.float64)
            parts += [pause, words * _gain(SPEECH_DB) / np.sqrt(np.mean(words**2))]
            spans.append(((at + len(pause)) / RATE, (at + len(pause) + len(words)) / RATE))
            at += len(pause) + len(words)
        return np.concatenate([*parts, np.zeros(2 * RATE)]), spans


def _gain(db: float) -> float:
    return float(10 ** (db / 20))


def _trimmed(samples: np.ndarray) -> np.ndarray:
    """Without what is before and after the speech, 35 dB below its loudest 10 ms."""
    frame = RATE // 100
    power = np.square(samples[: len(samples) // frame * frame]).reshape(-1, frame).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10**-3.5)
    return samples[loud[0] * frame : (loud[-1] + 1) * frame]


def segments(silero: Silero) -> Callable[[np.ndarray], Spans]:
    def regions(samples: np.ndarray) -> Spans:
        detector, segmenter = SpeechDetector(silero), Segmenter(CLIP_S)
        found = []
        for start in range(0, len(samples), BLOCK):
            found += segmenter.push(detector.push(samples[start : start + BLOCK]))
        found += segmenter.push(detector.finish())
        found += segmenter.finish(len(samples))
        return [(region.start / SAMPLE_RATE, region.end / SAMPLE_RATE) for region in found]

    return regions


def faster_whisper(samples: np.ndarray) -> Spans:
    found = get_speech_timestamps(samples, VAD_OPTIONS)
    return [(region["start"] / SAMPLE_RATE, region["end"] / SAMPLE_RATE) for region in found]


def _mask(spans: Spans, steps: int, margin_s: float = 0.0) -> np.ndarray:
    inside = np.zeros(steps, bool)
    for start, end in spans:
        inside[max(0, round((start - margin_s) * STEPS)) : round((end + margin_s) * STEPS)] = True
    return inside


class Score:
    """Of one contender: steps of time, and distances in seconds."""

    def __init__(self) -> None:
        self.speech = self.missed = self.silence = self.false = 0
        self.distances: list[float] = []

    def add(self, spoken: Spans, found: Spans, duration_s: float) -> None:
        steps = round(duration_s * STEPS)
        speech, inside, near = _mask(spoken, steps), _mask(found, steps), _mask(spoken, steps, NEAR_S)
        self.speech += int(speech.sum())
        self.missed += int((speech & ~inside).sum())
        self.silence += int((~near).sum())
        self.false += int((inside & ~near).sum())
        for start, end in spoken:
            self.distances += [
                distance
                for region in found
                if region[0] <= (start + end) / 2 <= region[1]
                for distance in (abs(region[0] - start), abs(region[1] - end))
            ]

    def figures(self) -> dict[str, float]:
        return {
            "missed": round(self.missed / max(1, self.speech), 5),
            "false": round(self.false / max(1, self.silence), 5),
            "boundary_s": round(statistics.median(self.distances), 3) if self.distances else 0.0,
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.vad", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=30, help="each is written in every codec")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    contenders = {
        "export": segments(Export()),
        "rayscribe": segments(load_silero()),
        "faster-whisper": faster_whisper,
    }
    maker = CallMaker(parsed.seed)
    scores: dict[tuple[str, str], Score] = defaultdict(Score)
    files = unequal = 0
    for number in range(parsed.calls):
        disturbance = DISTURBANCES[number % len(DISTURBANCES)]
        call, spoken = maker.call(disturbance)
        for codec, encode in CODECS.items():
            with open_audio(BytesIO(encode(call[:, None])), "call") as audio:
                samples = np.concatenate(list(resampled(audio.blocks(), audio.sample_rate)))[:, 0]
            found = {name: contender(samples) for name, contender in contenders.items()}
            files += 1
            unequal += found["export"] != found["rayscribe"]
            for name, spans in found.items():
                for key in (codec, disturbance, "all"):
                    scores[key, name].add(spoken, spans, len(samples) / SAMPLE_RATE)

    table = Table("missed / false / boundary", *contenders)
    for key in dict.fromkeys((*CODECS, *DISTURBANCES, "all")):
        cells = [scores[key, name].figures() for name in contenders]
        table.add_row(key, *(f"{c['missed']:.2%} / {c['false']:.2%} / {c['boundary_s']:.2f} s" for c in cells))
    Console().print(table)
    print(f"files whose segments differ between the export and rayscribe: {unequal} of {files}")
    result = {name: scores["all", name].figures() for name in contenders}
    print(json.dumps({"bench": "vad", "seed": parsed.seed, "files": files, "unequal_files": unequal} | result))


if __name__ == "__main__":
    main()
