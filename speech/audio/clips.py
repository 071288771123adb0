"""From one channel's samples to clips: speech regions with their audio, ready for an engine.

Samples come in blocks of any size, from a file or a live stream. Only audio that a later clip may contain is held in
memory, at most a clip's length.
"""

from dataclasses import dataclass

import numpy as np
from onnxruntime import InferenceSession

from speech.audio import SAMPLE_RATE
from speech.audio.crosstalk import CrosstalkDetector
from speech.audio.segmenting import Segmenter, SpeechRegion
from speech.audio.vad import SpeechDetector


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


class ChannelSegmenter:
    """Cuts one channel, of a file or a live stream, into clips.

    Args:
        channel: the channel number that its clips carry.
        clip_s: the longest clip that the model takes, in seconds.
        vad: from ``load_silero``; may be shared.
        start_s: the time of the first sample.
        crosstalk: has the samples of both channels; None where there are not two.
    """

    def __init__(
        self,
        channel: int,
        clip_s: float,
        vad: InferenceSession,
        start_s: float = 0.0,
        crosstalk: CrosstalkDetector | None = None,
    ) -> None:
        self.channel = channel
        self._start_s = start_s
        self._crosstalk = crosstalk
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

    def push(self, samples: np.ndarray) -> None:
        """Adds the next samples: float32, 16 kHz."""
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
            if self._crosstalk is not None and self._crosstalk.is_crosstalk(self.channel, region):
                continue
            end = min(region.end, self._received)
            self._cut.append((region, audio[region.start - self._first : end - self._first].copy()))
            self.speech += region.speech

    def _discard(self) -> None:
        while self._pending and self._first + len(self._pending[0]) <= self.keep_from:
            self._first += len(self._pending.pop(0))


def _as_int16(samples: np.ndarray) -> np.ndarray:
    scaled = np.rint(samples * 32768.0)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)
