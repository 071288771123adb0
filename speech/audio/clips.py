"""From one channel's samples to clips: stretches of speech, ready for an engine.

Samples come in blocks of any size, from a file or as they are spoken. Only the audio that no decision has been made
on yet is held, at most a clip's length.
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
    """One stretch of speech on one channel.

    Attributes:
        channel: the channel in the file; 0 for a mixture and for mono written twice.
        start_s, end_s: in the time of the file, so a recording's ``offset`` is counted in.
        samples: int16, mono, 16 kHz.
    """

    channel: int
    start_s: float
    end_s: float
    samples: np.ndarray


class ChannelSegmenter:
    """One channel's way from samples to clips, whether they come from a file or as they are spoken.

    Args:
        channel: what its clips are said to be of.
        clip_s: the longest clip that the model takes.
        vad: of ``load_silero``; may be shared.
        start_s: the time of its first sample.
        leakage: knows the other channel, where there is one.
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
        self._undecided: list[np.ndarray] = []  # int16 blocks that later segments may need, the first from _from on
        self._from = self._heard = 0
        self._cut: list[tuple[SpeechRegion, np.ndarray]] = []

    @property
    def keep_from(self) -> int:
        """The first sample that a later segment may still hold."""
        return self._segmenter.keep_from

    def push(self, samples: np.ndarray) -> None:
        """Takes the next samples: float32, 16 kHz."""
        self._undecided.append(_as_int16(samples))
        self._heard += len(samples)
        self._keep(self._segmenter.push(self._detector.push(samples)))
        self._forget()

    def finish(self) -> None:
        """Ends the channel, and with it the speech that is being heard."""
        self._keep(self._segmenter.push(self._detector.finish()))
        self._keep(self._segmenter.finish(self._heard))
        self._undecided.clear()

    def pop_clips(self) -> list[Clip]:
        """The clips that have become certain since the last call."""
        clips = [self._clip(cut.start, cut.end, samples) for cut, samples in self._cut]
        self._cut.clear()
        return clips

    def partial_clip(self) -> Clip | None:
        """The speech that is being heard, as far as it has come; None in a pause."""
        if not self._segmenter.speaking:
            return None
        return self._clip(self.keep_from, self._heard, np.concatenate(self._undecided)[self.keep_from - self._from :])

    def _clip(self, start: int, end: int, samples: np.ndarray) -> Clip:
        return Clip(self.channel, self._start_s + start / SAMPLE_RATE, self._start_s + end / SAMPLE_RATE, samples)

    def _keep(self, segments: list[SpeechRegion]) -> None:
        if not segments:
            return
        audio = np.concatenate(self._undecided)
        for found in segments:
            if self._crosstalk is not None and self._crosstalk.is_crosstalk(self.channel, found):
                continue
            end = min(found.end, self._heard)
            self._cut.append((found, audio[found.start - self._from : end - self._from].copy()))
            self.speech += found.speech

    def _forget(self) -> None:
        while self._undecided and self._from + len(self._undecided[0]) <= self.keep_from:
            self._from += len(self._undecided.pop(0))


def _as_int16(samples: np.ndarray) -> np.ndarray:
    scaled = np.rint(samples * 32768.0)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)
