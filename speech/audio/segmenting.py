"""Where speech begins and ends, from the VAD's windows: segments no longer than a model's clip.

One rule a step. Speech begins with a window that is likely speech and lasts until all windows of a
pause are unlikely (hysteresis: a word may trail off below the first threshold). A blip shorter than any
word is noise. What remains is padded, so that a soft onset or a trailing consonant isn't clipped. What is
too long for the model is cut in the second half of the clip: in the middle of a pause if there is one,
else where it is quietest, which is between words more often than not. The two parts touch, and nothing
between them is lost.

``Segmenter`` takes windows as they come and decides as soon as it can, from nothing but what it
must know. So streaming gives what one pass gives, whatever the size of the blocks.
"""

from dataclasses import dataclass

import numpy as np

from speech.audio import SAMPLE_RATE
from speech.audio.vad import WINDOW, VadWindows

# Silero's own thresholds for entering and leaving speech.
ONSET_PROBABILITY = 0.5
OFFSET_PROBABILITY = 0.35
# Shorter pauses are a speaker's breath between words, longer ones likely a turn's end.
MIN_SILENCE_S = 0.7
# Two windows or fewer is a click; the shortest "yes" on the telephone is over twice that.
MIN_SPEECH_S = 0.09
# Silero finds an onset up to a fifth of a second late. At most half of MIN_SILENCE_S, so that the
# padding of two segments never meets.
PADDING_S = 0.25
# A cut costs the level beside it, and these decibels when all within the context is speech. So a pause
# wins over any quiet sound, even in a noisy room, and in speech without a pause the level decides.
SPEECH_COSTS_DB = 30.0
CUT_CONTEXT_S = 0.16
# Cuts that cost the same to within this are equally good, and the latest makes the fewest clips.
CUT_TOLERANCE_DB = 1.0
# Below this a clip leaves no choice of where to cut.
MIN_CLIP_S = 4.0


def _windows(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / WINDOW)


@dataclass(frozen=True, slots=True)
class SpeechRegion:
    """A stretch of speech, in samples at 16 kHz; ``speech`` counts those that aren't padding."""

    start: int
    end: int
    speech: int


class Segmenter:
    """Cuts one channel. Positions inside are windows; those handed out are samples."""

    def __init__(self, clip_s: float) -> None:
        if clip_s < MIN_CLIP_S:
            raise ValueError(f"clips of {clip_s} s leave no room to cut at pauses; the least is {MIN_CLIP_S} s")
        self._limit = int(clip_s * SAMPLE_RATE) // WINDOW
        self._silence, self._padding = _windows(MIN_SILENCE_S), _windows(PADDING_S)
        self._shortest, self._context = _windows(MIN_SPEECH_S), _windows(CUT_CONTEXT_S)
        self._seen = 0
        self._settled = 0  # where the last segment ended
        # The speech that is being heard, if any: where it was found, where its clip begins, where it was
        # last likely, and whether its beginning is a cut. Its windows are kept for choosing the next.
        self._onset: int | None = None
        self._start = self._voiced_to = 0
        self._is_rest = False
        self._windows: list[tuple[float, float]] = []

    @property
    def keep_from(self) -> int:
        """The first sample that a later segment may still hold; all before it may be forgotten."""
        if self._onset is not None:
            return self._start * WINDOW
        return max(self._settled, self._seen - self._padding) * WINDOW

    @property
    def speaking(self) -> bool:
        """Whether speech has begun and not yet ended; it begins at ``keep_from``."""
        return self._onset is not None

    def push(self, windows: VadWindows) -> list[SpeechRegion]:
        """Takes the next windows; returns the segments that are now certain."""
        found: list[SpeechRegion] = []
        for probability, level in zip(windows.probabilities.tolist(), windows.levels_db.tolist(), strict=True):
            at = self._seen
            self._seen += 1
            if self._onset is None:
                if probability < ONSET_PROBABILITY:
                    continue
                self._begin(at, start=max(self._settled, at - self._padding), is_rest=False)
            self._windows.append((probability, level))
            if probability >= OFFSET_PROBABILITY:
                self._voiced_to = at + 1
                if self._voiced_to + self._padding - self._start > self._limit:
                    found.append(self._cut())
            elif self._seen - self._voiced_to >= self._silence:
                found += self._end(self._seen * WINDOW)
        return found

    def finish(self, samples: int) -> list[SpeechRegion]:
        """Ends the recording, which was ``samples`` long; returns the last segment, if one was open."""
        return self._end(samples) if self._onset is not None else []

    def _begin(self, onset: int, *, start: int, is_rest: bool) -> None:
        self._onset, self._start, self._is_rest = onset, start, is_rest
        self._voiced_to = onset + 1
        self._windows = []

    def _end(self, available: int) -> list[SpeechRegion]:
        assert self._onset is not None
        onset, self._onset = self._onset, None
        if self._voiced_to - onset < self._shortest and not self._is_rest:
            return []
        self._settled = self._voiced_to + self._padding
        end, voiced_to = (min(window * WINDOW, available) for window in (self._settled, self._voiced_to))
        return [SpeechRegion(self._start * WINDOW, end, voiced_to - onset * WINDOW)]

    def _cut(self) -> SpeechRegion:
        """Ends the clip at its best point and begins the next there."""
        assert self._onset is not None
        first = self._start + self._limit // 2 - self._onset
        last = min(self._start + self._limit, self._seen - 1) - self._onset
        cut = first + _best_cut(np.array(self._windows), np.arange(first, last + 1), self._context)
        rest, voiced_to, at = self._windows[cut:], self._voiced_to, self._onset + cut
        segment_channel = SpeechRegion(self._start * WINDOW, at * WINDOW, cut * WINDOW)
        self._begin(at, start=at, is_rest=True)
        self._windows, self._voiced_to = rest, voiced_to
        return segment_channel


def _best_cut(windows: np.ndarray, cuts: np.ndarray, context: int) -> int:
    """Which of ``cuts`` costs least; cut k falls between windows k - 1 and k of (probability, level)."""
    sums = np.concatenate([[0.0], np.cumsum(windows[:, 0])])
    low, high = np.maximum(cuts - context, 0), np.minimum(cuts + context, len(windows))
    speech = (sums[high] - sums[low]) / (high - low)
    power = 10 ** (windows[:, 1] / 10)
    beside = 10 * np.log10((power[cuts - 1] + power[cuts]) / 2)
    costs = SPEECH_COSTS_DB * speech + beside
    return int(np.flatnonzero(costs <= costs.min() + CUT_TOLERANCE_DB)[-1])


def segment_channel(windows: VadWindows, samples: int, clip_s: float) -> list[SpeechRegion]:
    """Segments of a whole channel of ``samples`` samples at once."""
    segmenter = Segmenter(clip_s)
    return segmenter.push(windows) + segmenter.finish(samples)
