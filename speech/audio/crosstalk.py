"""Crosstalk: segments of one channel that are only the other channel's speech, attenuated, are dropped.

Stereo Opus at low bitrates codes one signal and its panning, and a recorder's mixer may couple its inputs. Then each
voice is on its own channel and, some decibels lower, on the other one, where the VAD detects it as well: every
sentence would be transcribed for both speakers.

A segment is crosstalk only if, in each quarter second of it that is not a pause, its waveform equals the other
channel's (all but a twentieth of its energy) and the other channel is louder. So no speech is lost: the same words
are on the other channel, and any speech on top of them lowers the correlation.

Limits: two channels only, and crosstalk without delay. An acoustic echo has another waveform and is kept.
"""

import numpy as np

from speech.audio.segmenting import SpeechRegion
from speech.audio.silero import WINDOW

_STEP = 8  # windows compared together: a quarter of a second
# Samples, a millisecond, whose mean does not count: 21 dB less at 50 Hz, 6 dB less at 300 Hz.
_MEAN = 16
MAX_RESIDUAL = 0.05  # share of the energy; Opus crosstalk leaves at most 0.02, two voices 0.5 or more
MIN_LOUDER = 10 ** (2 / 10)  # energy of the other channel over this one's
# Relative to the segment's loudest step: in quiet steps a codec's noise alone is more than MAX_RESIDUAL. Less than what
# MAX_RESIDUAL allows in the loudest (-13 dB).
RESIDUAL_FLOOR = 10 ** (-25 / 10)
LOUD_RANGE = 10 ** (-20 / 10)  # steps quieter than this, relative to the segment's loudest, are pauses


class CrosstalkDetector:
    """Energies and cross product of two channels, window by window, kept as long as a segment may need them."""

    def __init__(self) -> None:
        self._rest = np.zeros((0, 2), np.float32)
        self._first = 0  # index of the first window kept
        self._products = np.zeros((0, 3), np.float32)  # of each window: both energies, cross product

    def push(self, block: np.ndarray) -> None:
        """Adds the next samples, of shape (frames, 2), at 16 kHz."""
        samples = np.concatenate([self._rest, block])
        count = len(samples) // WINDOW
        self._rest = samples[count * WINDOW :]
        if count:
            # Channel by channel: einsum is ten times slower where channels alternate in memory.
            products = _products_without_means(np.ascontiguousarray(samples[: count * WINDOW].T))
            self._products = np.concatenate([self._products, products])

    def discard_before(self, before: int) -> None:
        """Forgets the windows before this sample; no later segment may begin before it."""
        dropped = max(0, before // WINDOW - self._first)
        self._products = self._products[dropped:]
        self._first += dropped

    def is_crosstalk(self, channel: int, region: SpeechRegion) -> bool:
        """Whether the region of ``channel`` is the other channel's speech, which is louder there."""
        first, end = region.start // WINDOW - self._first, -(-region.end // WINDOW) - self._first
        products = self._products[first:end].astype(np.float64)
        if not len(products):
            return False
        sums = np.add.reduceat(products, np.arange(0, len(products), _STEP))
        own, other, shared = sums[:, channel], sums[:, 1 - channel], sums[:, 2]
        loud = own >= own.max() * LOUD_RANGE
        residual = own - shared**2 / np.maximum(other, np.finfo(np.float64).tiny)
        same = residual <= np.maximum(MAX_RESIDUAL * own, RESIDUAL_FLOOR * own.max())
        return bool((same & (other >= own * MIN_LOUDER))[loud].all())


def _products_without_means(channels: np.ndarray) -> np.ndarray:
    """Both energies and the cross product of each window, as if the mean of each _MEAN samples were subtracted.

    Args:
        channels: (2, samples), whole windows; changed.

    Returns:
        (windows, 3).
    """
    channels -= channels.mean(axis=1, keepdims=True)  # a large DC would leave the sums no digits
    means = np.einsum("cpt->cp", channels.reshape(2, -1, _MEAN)) / np.float32(_MEAN)
    samples, means = (each.reshape(2, -1, size) for each, size in ((channels, WINDOW), (means, WINDOW // _MEAN)))
    return _products(samples) - _MEAN * _products(means)


def _products(windows: np.ndarray) -> np.ndarray:
    first, second = windows
    pairs = ((first, first), (second, second), (first, second))
    return np.stack([np.einsum("wt,wt->w", x, y) for x, y in pairs], axis=1)
