"""From one channel's samples to clips: speech regions with their audio, ready for an engine.

Samples come in blocks of any size, from a file or a live stream. Only audio that a later clip may contain is held in
memory, at most a clip's length.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from speech.audio import SAMPLE_RATE
from speech.audio.segmenting import Segmenter, SpeechRegion
from speech.audio.silero import WINDOW, Silero
from speech.audio.vad import SpeechDetector

_LOUDEST = 16  # windows, half a second


@dataclass(frozen=True, slots=True)
class Clip:
    """The audio of one speech region of one channel.

    Attributes:
        channel: the channel in the file; 0 for an average of channels and for dual mono.
        start_s, end_s: from the beginning of the file, so a recording's ``offset`` is included.
        samples: int16, mono, 16 kHz.
    """

    channel: int
    start_s: float
    end_s: float
    samples: np.ndarray


@dataclass(frozen=True, slots=True)
class Amplification:
    """``dc`` is subtracted from samples before they are multiplied by ``gain``."""

    dc: float
    gain: float


class ChannelSegmenter:
    """Cuts one channel, of a file or a live stream, into clips.

    Args:
        channel: the channel number that its clips carry.
        clip_s: the longest clip that the model takes, in seconds.
        vad: from ``speech.audio.silero.load_silero``; may be shared.
        start_s: the time of the first sample.
        amplification: applied to all samples.
        is_crosstalk: whether a region is only another channel's speech.
    """

    def __init__(
        self,
        channel: int,
        clip_s: float,
        vad: Silero,
        start_s: float = 0.0,
        amplification: Amplification | None = None,
        is_crosstalk: Callable[[SpeechRegion], bool] | None = None,
    ) -> None:
        self.channel = channel
        self._start_s = start_s
        self._amplification = amplification
        self._sum, self._measured = 0.0, 0  # of the means of windows, and their number
        self._is_crosstalk = is_crosstalk
        self._loudest = np.zeros(_LOUDEST, np.float32)  # mean squares
        self.speech = 0
        self._detector = SpeechDetector(vad)
        self._segmenter = Segmenter(clip_s)
        self._pending: list[np.ndarray] = []  # int16 blocks that later regions may need; the first begins at _first
        self._first = self._received = 0
        self._cut: list[tuple[SpeechRegion, np.ndarray]] = []

    @property
    def keep_from(self) -> int:
        """The first sample that a later clip may contain."""
        return self._segmenter.keep_from

    @property
    def dc(self) -> float:
        """The mean of the samples so far."""
        return self._sum / self._measured if self._measured else 0.0

    @property
    def level_db(self) -> float:
        """The level of the loudest half second so far, in dBFS, without DC; clicks do not count."""
        return float(10 * np.log10(self._loudest.min() + 1e-12))

    def push(self, samples: np.ndarray) -> None:
        """Adds the next samples: float32, 16 kHz."""
        if self._amplification is not None:
            samples = (samples - np.float32(self._amplification.dc)) * np.float32(self._amplification.gain)
        self._measure(samples)
        self._pending.append(_as_int16(samples))
        self._received += len(samples)
        self._add(self._segmenter.push(self._detector.push(samples)))
        self._discard()

    def finish(self) -> None:
        """Ends the channel, and with it an open speech region."""
        self._add(self._segmenter.push(self._detector.finish()))
        self._add(self._segmenter.finish(self._received))
        self._pending.clear()

    def pop_clips(self) -> list[Clip]:
        """The clips completed since the last call."""
        clips = [self._clip(region.start, region.end, samples) for region, samples in self._cut]
        self._cut.clear()
        return clips

    def partial_clip(self) -> Clip | None:
        """The audio of the open speech region so far; None in a pause."""
        if not self._segmenter.speaking:
            return None
        return self._clip(self.keep_from, self._received, np.concatenate(self._pending)[self.keep_from - self._first :])

    def _clip(self, start: int, end: int, samples: np.ndarray) -> Clip:
        return Clip(self.channel, self._start_s + start / SAMPLE_RATE, self._start_s + end / SAMPLE_RATE, samples)

    def _add(self, regions: list[SpeechRegion]) -> None:
        if not regions:
            return
        audio = np.concatenate(self._pending)
        for region in regions:
            if self._is_crosstalk is not None and self._is_crosstalk(region):
                continue
            end = min(region.end, self._received)
            self._cut.append((region, audio[region.start - self._first : end - self._first].copy()))
            self.speech += region.speech

    def _measure(self, samples: np.ndarray) -> None:
        windows = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)
        means = windows.mean(axis=1)
        self._sum += float(means.sum(dtype=np.float64))
        self._measured += len(windows)
        levels = np.einsum("ws,ws->w", windows, windows) / WINDOW - means**2
        self._loudest = np.partition(np.concatenate([self._loudest, levels]), -_LOUDEST)[-_LOUDEST:]

    def _discard(self) -> None:
        while self._pending and self._first + len(self._pending[0]) <= self.keep_from:
            self._first += len(self._pending.pop(0))


def _as_int16(samples: np.ndarray) -> np.ndarray:
    scaled = np.rint(samples * 32768.0)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)
