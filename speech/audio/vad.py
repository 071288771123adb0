"""Speech probability and level of each 32 ms window of a channel, from samples in blocks of any size."""

from typing import NamedTuple

import numpy as np

from speech.audio.silero import CONTEXT, WINDOW, Silero

_FLOOR = 1e-7  # of full-scale power: levels are never below -70 dBFS


class VadWindows(NamedTuple):
    """Consecutive windows: speech probabilities, and levels in dBFS; two arrays of shape (windows,)."""

    probabilities: np.ndarray
    levels_db: np.ndarray


class SpeechDetector:
    """The VAD of one channel. Samples come in blocks of any size; each full window gets one probability."""

    def __init__(self, silero: Silero) -> None:
        self._silero = silero
        self._state = silero.initial_state()
        self._pending = np.zeros(CONTEXT, np.float32)  # the context, then the samples of an incomplete window

    def push(self, samples: np.ndarray) -> VadWindows:
        """The windows completed by ``samples`` (float32, 16 kHz)."""
        samples = np.concatenate([self._pending, samples])
        count = (len(samples) - CONTEXT) // WINDOW
        self._pending = samples[count * WINDOW :]
        if not count:
            return VadWindows(np.zeros(0, np.float32), np.zeros(0, np.float32))
        # Overlapping views: each window is preceded by the last samples of the one before.
        framed = np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + WINDOW)[::WINDOW][:count]
        probabilities, self._state = self._silero(framed, self._state)
        own = samples[CONTEXT : CONTEXT + count * WINDOW].reshape(count, WINDOW)
        power = np.einsum("ws,ws->w", own, own) / WINDOW
        return VadWindows(probabilities, 10 * np.log10(power + _FLOOR))

    def finish(self) -> VadWindows:
        """The last window, padded with zeros; none when the samples ended with a whole window."""
        remainder = len(self._pending) - CONTEXT
        return self.push(np.zeros(WINDOW - remainder if remainder else 0, np.float32))
