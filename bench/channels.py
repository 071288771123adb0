"""Dual-mono detection: rates of false splits and false merges over made calls.

    python -m bench.channels [--calls 40] [--seed 0] [--show]

Calls are made of the utterances of the sample calls (demo/samples): two voices in turns of random lengths, levels and
pauses. Each call is written in every codec, once with one voice a channel ("two speakers") and once with the same
mixture on both channels ("dual mono"), with one disturbance of a kind drawn for it:

    two speakers   DC, hum or beeps common to both channels; an announcement on both first; crosstalk both ways;
                   independent noise; a low level; a second speaker who says one short utterance; a silent first channel
    dual mono      another gain, or inverted; delay of up to 4 ms; independent noise; unequal DC or hum; a low level

False merge: two speakers of whom one is lost. False split: dual mono that would be transcribed twice. Prints both by
codec and by disturbance and, last, one line of JSON.
"""

import argparse
import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
from rich.console import Console
from rich.table import Table

from speech.audio.channels import select_channels
from speech.audio.decoding import open_audio
from speech.listener import Listener
from speech.recording import Options, Recording
from testing.synthetic_audio import RATE, ffmpeg, sndfile

SAMPLES = Path(__file__).parent.parent / "demo" / "samples"
STEREO_SAMPLES = ("account-005.flac", "billing-001.wav", "delivery-002.wav", "travel-004.wav", "german-013.wav")


def utterances() -> list[list[np.ndarray]]:
    """The utterances of each voice: float32 at 8 kHz, with a peak of 1."""
    listener, voices = Listener(clip_s=30.0), defaultdict(list)
    for name in STEREO_SAMPLES:
        recording = Recording(id=name, audio=str(SAMPLES / name), options=Options(channels="split"))
        for clip in listener.listen(recording).clips:
            samples = soxr.resample(clip.samples.astype(np.float32), 16_000, RATE)
            voices[name, clip.channel].append(samples / np.abs(samples).max())
    return list(voices.values())


def gsm(samples: np.ndarray) -> bytes:
    """Each channel through GSM 6.10, which has no stereo form."""
    decoded = []
    for channel in samples.T:
        decoded.append(soundfile.read(io.BytesIO(sndfile(channel, "WAV", "GSM610")), dtype="float32")[0])
    return sndfile(np.stack(decoded, axis=1), "WAV", "PCM_16")


CODECS: dict[str, Callable[[np.ndarray], bytes]] = {
    "PCM": lambda samples: sndfile(samples, "WAV", "PCM_16"),
    "G.711 µ-law": lambda samples: sndfile(samples, "WAV", "ULAW"),
    "G.711 A-law": lambda samples: sndfile(samples, "WAV", "ALAW"),
    "GSM": gsm,
    "Opus 24 kbit/s": lambda samples: ffmpeg(samples, "ogg", "libopus", 48_000, bit_rate=24_000),
    "MP3 32 kbit/s": lambda samples: ffmpeg(samples, "mp3", "libmp3lame", 16_000, bit_rate=32_000),
    "AAC 32 kbit/s": lambda samples: ffmpeg(samples, "mp4", "aac", 16_000, bit_rate=32_000),
}


class CallMaker:
    """Makes calls from utterances; the same ones for the same seed."""

    def __init__(self, voices: list[list[np.ndarray]], seed: int) -> None:
        self._voices = voices
        self._rng = np.random.default_rng(seed)

    def two_speakers(self, disturbance: str) -> np.ndarray:
        """(samples, 2) at 8 kHz."""
        call = self._turns(short=disturbance == "one short utterance")
        seconds = np.arange(len(call)) / RATE
        rng = self._rng
        if disturbance == "common DC":
            call += rng.uniform(0.05, 0.3)
        elif disturbance == "common hum":
            call += self._hum(seconds, rng.uniform(0.05, 0.3))[:, None]
        elif disturbance == "common beeps":
            beeps = 0.4 * np.sin(2 * np.pi * rng.uniform(400, 2000) * seconds) * (seconds % rng.uniform(3, 15) < 0.8)
            call = 0.3 * call + beeps[:, None]
        elif disturbance == "common beep first":
            beep = 0.5 * np.sin(2 * np.pi * rng.uniform(400, 2000) * np.arange(round(rng.uniform(1, 4) * RATE)) / RATE)
            call = np.concatenate([np.stack([beep, beep], axis=1), 0.3 * call])
        elif disturbance == "common announcement":
            words = self._utterance(int(rng.integers(len(self._voices))), 0.5)
            call = np.concatenate([np.stack([words, words], axis=1), call])
        elif disturbance == "crosstalk":
            call = call + 10 ** (-rng.uniform(6, 25) / 20) * call[:, ::-1]
        elif disturbance == "noise":
            call = call + 10 ** (-rng.uniform(35, 60) / 20) * rng.standard_normal(call.shape)
        elif disturbance == "low level":
            call = call * 10 ** (-rng.uniform(15, 35) / 20)
        elif disturbance == "first channel silent":
            call[:, 0] = 0
        return np.asarray(np.clip(call, -1, 1), np.float32)

    def dual_mono(self, disturbance: str) -> np.ndarray:
        """(samples, 2) at 8 kHz."""
        rng = self._rng
        left = self._turns(short=False).sum(axis=1)
        right = left.copy()
        seconds = np.arange(len(left)) / RATE
        if disturbance == "gain":
            right *= 10 ** (rng.uniform(-20, 6) / 20)
        elif disturbance == "inverted":
            right *= -1
        elif disturbance == "delay":
            right = _delayed(right, rng.uniform(0.1, 32))
        elif disturbance == "noise":
            left, right = (
                side + 10 ** (-rng.uniform(45, 60) / 20) * rng.standard_normal(len(left)) for side in (left, right)
            )
        elif disturbance == "unequal DC":
            left, right = left + rng.uniform(-0.03, 0.03), right + rng.uniform(-0.03, 0.03)
        elif disturbance == "unequal hum":
            right += self._hum(seconds, rng.uniform(0.005, 0.05))
        elif disturbance == "low level":
            gain = 10 ** (-rng.uniform(15, 35) / 20)
            left, right = left * gain, right * gain
        return np.asarray(np.clip(np.stack([left, right], axis=1), -1, 1), np.float32)

    def _turns(self, *, short: bool) -> np.ndarray:
        rng = self._rng
        pair = [int(voice) for voice in rng.choice(len(self._voices), 2, replace=False)]
        levels = 10 ** (-rng.uniform(4, 20, 2) / 20)
        parts = [np.zeros((round(rng.uniform(0, 2) * RATE), 2))]
        for turn in range(int(rng.integers(4, 9))):
            channel = turn % 2
            if short and channel == 1 and turn > 1:
                continue
            words = self._utterance(pair[channel], levels[channel])
            words = words[: round(rng.uniform(0.4, 1.2) * RATE)] if short and channel == 1 else words
            part = np.zeros((len(words) + round(rng.uniform(0.2, 2) * RATE), 2))
            part[: len(words), channel] = words
            parts.append(part)
        return np.concatenate(parts)

    def _utterance(self, voice: int, level: float) -> np.ndarray:
        return self._voices[voice][int(self._rng.integers(len(self._voices[voice])))] * level

    def _hum(self, seconds: np.ndarray, level: float) -> np.ndarray:
        mains_hz = float(self._rng.choice([50, 60]))
        return np.sum([level / n * np.sin(2 * np.pi * n * mains_hz * seconds) for n in (1, 2, 3, 5, 7)], axis=0)


TWO_SPEAKERS = (
    "none", "common DC", "common hum", "common beeps", "common beep first", "common announcement", "crosstalk",
    "noise", "low level", "one short utterance", "first channel silent",
)  # fmt: skip
DUAL_MONO = ("none", "gain", "inverted", "delay", "noise", "unequal DC", "unequal hum", "low level")


def _delayed(samples: np.ndarray, delay: float) -> np.ndarray:
    """Delayed by a fraction of samples."""
    spectrum = np.fft.rfft(np.pad(samples, (0, RATE)))
    cycles = np.arange(len(spectrum)) / (len(samples) + RATE)
    return np.fft.irfft(spectrum * np.exp(-2j * np.pi * cycles * delay), len(samples) + RATE)[: len(samples)]


def channels_kept(data: bytes) -> int:
    """How many channels are transcribed of a file."""
    with open_audio(io.BytesIO(data), "call") as audio:
        return len(select_channels(audio, Recording(id="call", audio="call")).groups)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.channels", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=40, help="of each kind; each is written in every codec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print each wrong decision")
    parsed = parser.parse_args()
    maker = CallMaker(utterances(), parsed.seed)
    # Of each kind, by codec and by disturbance: wrong decisions and files.
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for number in range(parsed.calls):
        for kind, disturbances, make, right in (
            ("false merges", TWO_SPEAKERS, maker.two_speakers, 2),
            ("false splits", DUAL_MONO, maker.dual_mono, 1),
        ):
            disturbance = disturbances[number % len(disturbances)]
            call = make(disturbance)
            for codec, encode in CODECS.items():
                wrong = channels_kept(encode(call)) != right
                for key in ("all", codec, disturbance):
                    counts[kind, key][0] += wrong
                    counts[kind, key][1] += 1
                if wrong and parsed.show:
                    print(f"{kind}: call {number}, {disturbance}, {codec}")

    table = Table("", "false merges", "false splits")
    for key in dict.fromkeys((*CODECS, *TWO_SPEAKERS, *DUAL_MONO, "all")):
        cells = [counts.get((kind, key)) for kind in ("false merges", "false splits")]
        table.add_row(key, *("" if cell is None else f"{cell[0]} of {cell[1]}" for cell in cells))
    Console().print(table)
    result: dict[str, object] = {"bench": "channels", "seed": parsed.seed, "calls": 2 * parsed.calls}
    for kind in ("false merges", "false splits"):
        wrong_count, files = counts[kind, "all"]
        result[kind.replace(" ", "_")] = {"files": files, "wrong": wrong_count, "rate": round(wrong_count / files, 4)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
