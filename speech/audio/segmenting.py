"""Speech regions from the VAD's windows, none longer than the model's clip limit.

A region begins with a window at or above the onset threshold and lasts until all windows of a pause are below the
offset threshold (hysteresis: the end of a word may fall below the onset threshold). A region shorter than any word is
noise and is dropped. The others are padded, so that a soft onset or a final consonant is not cut off. A region longer
than the model takes is cut in the second half of the clip: in the middle of a pause if there is one, else where it is
quietest, which is usually between words. The two parts touch; nothing between them is lost.

``Segmenter`` takes windows as they arrive and returns a region as soon as it is certain, so streaming returns what a
single pass returns, whatever the size of the blocks.
"""

import itertools
from collections import deque
from dataclasses import dataclass

import numpy as np

from speech.audio import SAMPLE_RATE
from speech.audio.silero import WINDOW
from speech.audio.vad import VadWindows

# Silero's own thresholds for entering and leaving speech.
ONSET_PROBABILITY = 0.5
OFFSET_PROBABILITY = 0.35
# Silero may be late by half a second, in quiet speech above all. So a region begins earlier, by as many windows before
# its onset as may be speech: at or above this probability, or so much louder than the quietest of LOUDNESS_S before.
# Measured (bench.vad): missed speech 0.73 % without, 0.03 % with it.
EARLY_PROBABILITY = 0.15
EARLY_LEVEL_DB = 15.0
EARLY_S = 0.6
LOUDNESS_S = 2.0
# Shorter pauses are mostly breaths within a turn, longer ones mostly ends of turns.
MIN_SILENCE_S = 0.7
# Two windows or fewer are a click; the shortest "yes" on the telephone is more than twice as long.
MIN_SPEECH_S = 0.09
# Beside that, for soft consonants. At most half of MIN_SILENCE_S, so that the padding of two
# regions never overlaps.
PADDING_S = 0.25
# The cost of a cut is the level beside it in dBFS plus this many decibels times the mean speech probability of its
# context. So a pause is preferred to any quiet sound, even in noise, and in speech without a pause the level decides.
SPEECH_COSTS_DB = 30.0
CUT_CONTEXT_S = 0.16
# Cuts whose costs differ by less are equally good; the latest of them gives the fewest clips.
CUT_TOLERANCE_DB = 1.0
# Shorter clips leave no choice of where to cut.
MIN_CLIP_S = 4.0


def _windows(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / WINDOW)


@dataclass(frozen=True, slots=True)
class SpeechRegion:
    """A region of speech, in samples at 16 kHz; ``speech`` is their number without padding."""

    start: int
    end: int
    speech: int


class Segmenter:
    """The speech regions of one channel. Positions are windows inside, samples in what is returned."""

    def __init__(self, clip_s: float) -> None:
        if clip_s < MIN_CLIP_S:
            raise ValueError(f"clips of {clip_s} s leave no room to cut at pauses; the minimum is {MIN_CLIP_S} s")
        self._limit = int(clip_s * SAMPLE_RATE) // WINDOW
        self._silence, self._padding = _windows(MIN_SILENCE_S), _windows(PADDING_S)
        self._shortest, self._context = _windows(MIN_SPEECH_S), _windows(CUT_CONTEXT_S)
        self._early = _windows(EARLY_S)
        self._before: deque[tuple[float, float]] = deque(maxlen=_windows(LOUDNESS_S))  # windows outside regions
        self._seen = 0
        self._last_end = 0  # end of the last region
        # The open region, if any: its onset, its padded start, the end of its last window above the offset threshold,
        # and whether it begins at a cut. Its windows are kept for the choice of the next cut.
        self._onset: int | None = None
        self._start = self._voiced_end = 0
        self._starts_at_cut = False
        self._windows: list[tuple[float, float]] = []

    @property
    def keep_from(self) -> int:
        """The first sample that a later region may contain; samples before it are no longer needed."""
        if self._onset is not None:
            return self._start * WINDOW
        return max(self._last_end, self._seen - self._early - self._padding) * WINDOW

    @property
    def speaking(self) -> bool:
        """Whether a region is open; it begins at ``keep_from``."""
        return self._onset is not None

    def push(self, windows: VadWindows) -> list[SpeechRegion]:
        """Adds the next windows; returns the regions that are now complete."""
        found: list[SpeechRegion] = []
        for probability, level in zip(windows.probabilities.tolist(), windows.levels_db.tolist(), strict=True):
            at = self._seen
            self._seen += 1
            if self._onset is None:
                if probability < ONSET_PROBABILITY:
                    self._before.append((probability, level))
                    continue
                start = at - self._early_windows() - self._padding
                self._begin(at, start=max(self._last_end, start), starts_at_cut=False)
            self._windows.append((probability, level))
            if probability >= OFFSET_PROBABILITY:
                self._voiced_end = at + 1
                if self._voiced_end + self._padding - self._start > self._limit:
                    found.append(self._cut())
            elif self._seen - self._voiced_end >= self._silence:
                found += self._end(self._seen * WINDOW)
        return found

    def finish(self, samples: int) -> list[SpeechRegion]:
        """Ends the channel, which has ``samples`` samples; returns the last region, if one was open."""
        return self._end(samples) if self._onset is not None else []

    def _early_windows(self) -> int:
        """How many windows before the onset may be speech."""
        quietest = min((level for _, level in self._before), default=0.0)
        count = 0
        for probability, level in itertools.islice(reversed(self._before), self._early):
            if probability < EARLY_PROBABILITY and level < quietest + EARLY_LEVEL_DB:
                break
            count += 1
        return count

    def _begin(self, onset: int, *, start: int, starts_at_cut: bool) -> None:
        self._onset, self._start, self._starts_at_cut = onset, start, starts_at_cut
        self._voiced_end = onset + 1
        self._windows = []

    def _end(self, available: int) -> list[SpeechRegion]:
        assert self._onset is not None
        onset, self._onset = self._onset, None
        if self._voiced_end - onset < self._shortest and not self._starts_at_cut:
            self._before.extend(self._windows)
            return []
        self._last_end = self._voiced_end + self._padding
        self._before.clear()
        self._before.extend(self._windows[self._last_end - onset :])
        end, voiced_end = (min(window * WINDOW, available) for window in (self._last_end, self._voiced_end))
        return [SpeechRegion(self._start * WINDOW, end, voiced_end - onset * WINDOW)]

    def _cut(self) -> SpeechRegion:
        """Ends the open region at the cheapest cut and begins the next one there."""
        assert self._onset is not None
        first = self._start + self._limit // 2 - self._onset
        # With its whole context behind it: if the channel ends here, the rest is still long enough for an encoder.
        last = min(self._start + self._limit, self._seen - self._context) - self._onset
        cut = first + _best_cut(np.array(self._windows), np.arange(first, last + 1), self._context)
        rest, voiced_end, at = self._windows[cut:], self._voiced_end, self._onset + cut
        region = SpeechRegion(self._start * WINDOW, at * WINDOW, cut * WINDOW)
        self._begin(at, start=at, starts_at_cut=True)
        self._windows, self._voiced_end = rest, voiced_end
        return region


def _best_cut(windows: np.ndarray, cuts: np.ndarray, context: int) -> int:
    """The latest of the cheapest ``cuts``; cut k lies between windows k - 1 and k.

    Args:
        windows: (windows, 2), probability and level in dBFS.
        cuts: candidate positions, ascending.
        context: windows on each side of a cut whose probabilities are averaged.
    """
    sums = np.concatenate([[0.0], np.cumsum(windows[:, 0])])
    low, high = np.maximum(cuts - context, 0), np.minimum(cuts + context, len(windows))
    speech = (sums[high] - sums[low]) / (high - low)
    power = 10 ** (windows[:, 1] / 10)
    beside = 10 * np.log10((power[cuts - 1] + power[cuts]) / 2)
    costs = SPEECH_COSTS_DB * speech + beside
    return int(np.flatnonzero(costs <= costs.min() + CUT_TOLERANCE_DB)[-1])


def segment_channel(windows: VadWindows, samples: int, clip_s: float) -> list[SpeechRegion]:
    """The regions of a whole channel of ``samples`` samples."""
    segmenter = Segmenter(clip_s)
    return segmenter.push(windows) + segmenter.finish(samples)
