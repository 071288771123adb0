"""Live audio: raw samples in as they arrive, clips out as soon as they are complete.

Clips are cut by ``speech.audio.clips.ChannelSegmenter``, as those of a file are: a live call has the segments that its
recording would have.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soundfile
import soxr

from speech.audio import SAMPLE_RATE
from speech.audio.clips import ChannelSegmenter, Clip
from speech.audio.silero import Silero

Encoding = Literal["pcm16", "ulaw", "alaw"]
_SUBTYPES: dict[Encoding, str] = {"pcm16": "PCM_16", "ulaw": "ULAW", "alaw": "ALAW"}


@dataclass(frozen=True, slots=True)
class LiveFormat:
    """Raw mono samples: 16-bit little-endian PCM, or G.711 (µ-law or A-law), at ``sample_rate`` Hz."""

    encoding: Encoding = "pcm16"
    sample_rate: int = 24_000

    @property
    def bytes_per_sample(self) -> int:
        return 2 if self.encoding == "pcm16" else 1


class LiveSegmenter:
    """Cuts one live mono stream into clips; bytes come in pieces of any size.

    Args:
        format: of the bytes.
        clip_s: the longest clip that the model takes, in seconds.
        vad: from ``speech.audio.silero.load_silero``; may be shared.
    """

    def __init__(self, format: LiveFormat, clip_s: float, vad: Silero) -> None:
        self._format = format
        self._clip_s = clip_s
        self._vad = vad
        self.received_s = 0.0
        self._rest = b""  # bytes of an incomplete sample
        self._resampler = self._new_resampler()
        self._segmenter = self._new_segmenter()

    def push(self, data: bytes) -> list[Clip]:
        """Adds the next bytes; returns the clips that they complete."""
        data = self._rest + data
        whole = len(data) // self._format.bytes_per_sample * self._format.bytes_per_sample
        self._rest = data[whole:]
        if whole:
            self._push(data[:whole], last=False)
        return self._segmenter.pop_clips()

    def finish(self) -> list[Clip]:
        """Ends the open clip and returns it; later audio starts a new one, with times counted from the same origin."""
        self._push(b"", last=True)
        self._segmenter.finish()
        clips = self._segmenter.pop_clips()
        self._rest, self._resampler, self._segmenter = b"", self._new_resampler(), self._new_segmenter()
        return clips

    def partial_clip(self) -> Clip | None:
        """The audio of the open clip so far; None in a pause."""
        return self._segmenter.partial_clip()

    def _new_resampler(self) -> soxr.ResampleStream | None:
        rate = self._format.sample_rate
        return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None

    def _new_segmenter(self) -> ChannelSegmenter:
        return ChannelSegmenter(0, self._clip_s, self._vad, self.received_s)

    def _push(self, data: bytes, last: bool) -> None:
        samples = self._decode(data)
        self.received_s += len(samples) / self._format.sample_rate
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        if len(samples):
            self._segmenter.push(samples)

    def _decode(self, data: bytes) -> np.ndarray:
        """Samples as float32 in [-1, 1), at the format's rate."""
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
