"""Speech that leaked from one channel into the other is not said twice.

Stereo Opus at low bitrates keeps one signal and how it is panned, and a recorder's mixer may let one side
through to the other. Then each voice is on its own channel, and some decibels lower on the other's, where
the VAD finds it as well: the transcript would give every sentence to both speakers.

A segment is a leak only if, in each quarter second of it that isn't a pause, it is the other channel's very
waveform (all but a twentieth of its energy) and the other is the louder one. So nothing is lost with it:
the same words are on the other channel, and anything said over them breaks the likeness.

Limits: two channels only, and leaks without delay. An acoustic echo is another waveform and stays.
"""

import numpy as np

from speech.audio.segmenting import SpeechRegion
from speech.audio.vad import WINDOW

_STEP = 8  # windows looked at together: a quarter of a second
MAX_RESIDUAL = 0.05  # leaks through Opus leave at most a fiftieth, two voices a half or more
MIN_LOUDER = 10 ** (2 / 10)  # of the other channel's energy over this one's
LOUD_RANGE = 10 ** (-20 / 10)  # quarters quieter than this, beside the segment's loudest, are pauses


class CrosstalkDetector:
    """What two channels have in common, window by window, for as long as a segment may still need it."""

    def __init__(self) -> None:
        self._rest = np.zeros((0, 2), np.float32)
        self._from = 0  # the first window that is kept
        self._products = np.zeros((0, 2, 2), np.float32)  # of each window: energies, and what they share

    def push(self, block: np.ndarray) -> None:
        """Takes the next samples, of shape (frames, 2)."""
        samples = np.concatenate([self._rest, block])
        count = len(samples) // WINDOW
        self._rest = samples[count * WINDOW :]
        windows = samples[: count * WINDOW].reshape(count, WINDOW, 2)
        self._products = np.concatenate([self._products, np.einsum("wtc,wtd->wcd", windows, windows)])

    def discard_before(self, before: int) -> None:
        """No segment will begin before this sample any more."""
        gone = max(0, before // WINDOW - self._from)
        self._products = self._products[gone:]
        self._from += gone

    def is_crosstalk(self, channel: int, segment_channel: SpeechRegion) -> bool:
        """Whether what ``channel`` has there is the other channel's, and louder there."""
        first, end = segment_channel.start // WINDOW - self._from, -(-segment_channel.end // WINDOW) - self._from
        products = self._products[first:end].astype(np.float64)
        if not len(products):
            return False
        sums = np.add.reduceat(products, np.arange(0, len(products), _STEP))
        own, other, shared = sums[:, channel, channel], sums[:, 1 - channel, 1 - channel], sums[:, 0, 1]
        loud = own >= own.max() * LOUD_RANGE
        same = shared**2 >= (1 - MAX_RESIDUAL) * own * other
        return bool((same & (other >= own * MIN_LOUDER))[loud].all())
