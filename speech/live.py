"""Audio as it is spoken: raw samples in as they come, clips out as soon as they are certain.

The way from samples to clips is the Listener's own (``speech.listener.Ear``), so that a call that is heard
live is cut as its recording would be.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soundfile
import soxr
from onnxruntime import InferenceSession

from speech.decoding import SAMPLE_RATE
from speech.listener import Clip, Ear

Encoding = Literal["pcm16", "ulaw", "alaw"]
_SUBTYPES: dict[Encoding, str] = {"pcm16": "PCM_16", "ulaw": "ULAW", "alaw": "ALAW"}


@dataclass(frozen=True, slots=True)
class LiveFormat:
    """Raw mono samples: 16-bit little-endian PCM, or G.711's companded bytes, at ``sample_rate`` Hz."""

    encoding: Encoding = "pcm16"
    sample_rate: int = 24_000

    @property
    def bytes_per_sample(self) -> int:
        return 2 if self.encoding == "pcm16" else 1


class LiveEar:
    """Hears one speaker, bytes of any number at a time.

    Args:
        format: of the bytes.
        clip_s: the longest clip that the model takes.
        vad: of ``speech.vad.load_silero``; may be shared.
    """

    def __init__(self, format: LiveFormat, clip_s: float, vad: InferenceSession) -> None:
        self._format = format
        self._clip_s = clip_s
        self._vad = vad
        self.heard_s = 0.0
        self._rest = b""  # bytes short of a sample
        self._resampler = self._new_resampler()
        self._ear = self._new_ear()

    def hear(self, data: bytes) -> list[Clip]:
        """Takes the next bytes; returns the clips that they have made certain."""
        data = self._rest + data
        whole = len(data) // self._format.bytes_per_sample * self._format.bytes_per_sample
        self._rest = data[whole:]
        if whole:
            self._push(data[:whole], last=False)
        return self._ear.take()

    def finish(self) -> list[Clip]:
        """Ends what is being said; what comes next begins anew. Times go on."""
        self._push(b"", last=True)
        self._ear.finish()
        clips = self._ear.take()
        self._rest, self._resampler, self._ear = b"", self._new_resampler(), self._new_ear()
        return clips

    def unfinished(self) -> Clip | None:
        """What is being said, as far as it has come; None in a pause."""
        return self._ear.unfinished()

    def _new_resampler(self) -> soxr.ResampleStream | None:
        rate = self._format.sample_rate
        return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None

    def _new_ear(self) -> Ear:
        return Ear(0, self._clip_s, self._vad, self.heard_s)

    def _push(self, data: bytes, last: bool) -> None:
        samples = self._decoded(data)
        self.heard_s += len(samples) / self._format.sample_rate
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        if len(samples):
            self._ear.hear(samples)

    def _decoded(self, data: bytes) -> np.ndarray:
        """float32 in [-1, 1), at the format's rate."""
        if not data:
            return np.zeros(0, np.float32)
        samples, _ = soundfile.read(
            io.BytesIO(data),
            dtype="float32",
            format="RAW",
            subtype=_SUBTYPES[self._format.encoding],
            endian="LITTLE" if self._format.encoding == "pcm16" else None,
            samplerate=self._format.sample_rate,
            channels=1,
        )
        return np.asarray(samples)
