"""Text to speech with Debian's espeak-ng and flite, run as programs.

Speakers are espeak-ng accents crossed with its voice variants, and flite's voices. One variant is
held out for tests in every accent.
"""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import soxr

from demo.train.fillers import words
from speech.audio import SAMPLE_RATE

ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-us-nyc")
VARIANTS = words(
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f3 f4 f5 Andrea Alex Annie Alicia Michael Linda Steph Denis Andy Paul Lee Marco"
)
HELD_OUT_VARIANT = "f2"
FLITE_VOICES = ("slt", "rms", "awb", "kal16")
FLITE_SHARE = 0.25

_ESPEAK_RATE = 22_050
_WAV_HEADER_BYTES = 44


@dataclass(frozen=True)
class Speaker:
    """One voice at one speed and pitch (both in its engine's units)."""

    engine: str
    voice: str
    rate: float
    pitch: float

    def say(self, text: str) -> np.ndarray:
        """The text spoken, float32 at 16 kHz, without silence at its edges."""
        samples = self._espeak(text) if self.engine == "espeak" else self._flite(text)
        return _trim(samples)

    def _espeak(self, text: str) -> np.ndarray:
        command = ["espeak-ng", "-v", self.voice, "-s", f"{self.rate:.0f}", "-p", f"{self.pitch:.0f}", "--stdout", text]
        wav = subprocess.run(command, capture_output=True, check=True).stdout
        # The header of --stdout has no sizes, so a WAV reader would reject it: read the samples after it.
        pcm = np.frombuffer(wav[_WAV_HEADER_BYTES:], dtype="<i2").astype(np.float32) / 32768
        return soxr.resample(pcm, _ESPEAK_RATE, SAMPLE_RATE)

    def _flite(self, text: str) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            command = ["flite", "-voice", self.voice, "--setf", f"duration_stretch={self.rate:.2f}"]
            command += ["--setf", f"int_f0_target_mean={self.pitch:.0f}", "-t", text, "-o", str(path)]
            subprocess.run(command, capture_output=True, check=True)
            pcm, rate = soundfile.read(path, dtype="float32")
        return pcm if rate == SAMPLE_RATE else soxr.resample(pcm, rate, SAMPLE_RATE)


def espeak_speaker(rng: Random, variant: str) -> Speaker:
    """An espeak-ng speaker of this variant with a random accent, speed and pitch."""
    return Speaker("espeak", f"{rng.choice(ACCENTS)}+{variant}", rng.uniform(140, 190), rng.uniform(30, 70))


def training_speaker(rng: Random) -> Speaker:
    """Any speaker but the held-out one."""
    if rng.random() < FLITE_SHARE:
        return Speaker("flite", rng.choice(FLITE_VOICES), rng.uniform(0.85, 1.15), rng.uniform(85, 190))
    return espeak_speaker(rng, rng.choice(VARIANTS))


def held_out_speaker(rng: Random) -> Speaker:
    """A speaker of the variant that is in no training clip."""
    return espeak_speaker(rng, HELD_OUT_VARIANT)


def _trim(samples: np.ndarray, threshold: float = 0.003, margin: int = 320) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > threshold)
    if not loud.size:
        return samples
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]
