"""Speech probability and level of each 32 ms window of a channel: Silero VAD on onnxruntime.

The ``silero-vad`` wheel ships several exports of one model. The sequence export is used here: it takes many windows
in one call and returns the LSTM's state, so that a long recording runs in blocks, with the probabilities of a single
run and without a Python call for each window. Only the wheel's model file is read: importing the package would import
torch, which a CPU worker neither has nor needs.

Limit: the 16 kHz model is used for all audio. The 8 kHz model would be cheaper, but telephone audio is resampled to
16 kHz for the recogniser in any case.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

WINDOW = 512  # samples
_CONTEXT = 64  # samples of the previous window that the model receives before each window
_STATE = (1, 1, 128)
_FLOOR = 1e-7  # of full-scale power: levels are never below -70 dBFS
# Windows, two minutes, after which repeated input (digital silence, a constant) is no longer given to the model: its
# state has nearly converged. Measured: speech after such silence begins in the same window, or one or two beside it.
_MAX_REPEATED = 3750
_MODEL_FILE = "data/silero_vad_16k_sequence.onnx"


class VadWindows(NamedTuple):
    """Consecutive windows: speech probabilities, and levels in dBFS; two arrays of shape (windows,)."""

    probabilities: np.ndarray
    levels_db: np.ndarray


def load_silero() -> onnxruntime.InferenceSession:
    """A session with the model, on one thread: a Listener uses one core, and a node runs many."""
    package = importlib.util.find_spec("silero_vad")  # finds, doesn't import
    if package is None or package.origin is None:
        raise ModuleNotFoundError("silero-vad is not installed: its wheel contains the VAD model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(package.origin).parent / _MODEL_FILE
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


class SpeechDetector:
    """The VAD of one channel. Samples come in blocks of any size; each full window gets one probability."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._hidden = np.zeros(_STATE, np.float32)
        self._cell = np.zeros(_STATE, np.float32)
        self._repeated = 0  # windows up to now that equal the one before
        self._last = (np.zeros(_CONTEXT + WINDOW, np.float32), np.float32(0))  # the last window and its probability
        self._pending = np.zeros(_CONTEXT, np.float32)  # the context, then the samples of an incomplete window

    def push(self, samples: np.ndarray) -> VadWindows:
        """The windows completed by ``samples`` (float32, 16 kHz)."""
        samples = np.concatenate([self._pending, samples])
        count = (len(samples) - _CONTEXT) // WINDOW
        self._pending = samples[count * WINDOW :]
        if not count:
            return VadWindows(np.zeros(0, np.float32), np.zeros(0, np.float32))
        # Overlapping views: each window is preceded by the last samples of the one before.
        framed = np.lib.stride_tricks.sliding_window_view(samples, _CONTEXT + WINDOW)[::WINDOW][:count]
        probabilities = self._probabilities(framed)
        own = samples[_CONTEXT : _CONTEXT + count * WINDOW].reshape(count, WINDOW)
        power = np.einsum("ws,ws->w", own, own) / WINDOW
        return VadWindows(probabilities, 10 * np.log10(power + _FLOOR))

    def _probabilities(self, framed: np.ndarray) -> np.ndarray:
        """Of windows with their context: (windows, _CONTEXT + WINDOW). Long repetition is not computed again."""
        skipped = self._skipped(framed)
        fresh = ~skipped
        probabilities = np.zeros(len(framed), np.float32)
        if fresh.any():
            probabilities[fresh], self._hidden, self._cell = self._session.run(
                ("speech_probs", "hn", "cn"),
                {"input": np.ascontiguousarray(framed[fresh]), "h": self._hidden, "c": self._cell},
            )
        for at in np.flatnonzero(skipped):
            probabilities[at] = probabilities[at - 1] if at else self._last[1]
        self._last = framed[-1].copy(), probabilities[-1]
        return probabilities

    def _skipped(self, framed: np.ndarray) -> np.ndarray:
        """Which windows have been repeated for too long: a boolean array."""
        repeats = np.empty(len(framed), bool)
        repeats[0] = np.array_equal(framed[0], self._last[0])
        repeats[1:] = (framed[1:, ::_CONTEXT] == framed[:-1, ::_CONTEXT]).all(axis=1)  # a few samples rule most out
        likely = np.flatnonzero(repeats[1:])
        repeats[1 + likely] = (framed[1 + likely] == framed[likely]).all(axis=1)
        if not repeats.any():
            self._repeated = 0
            return repeats
        skipped = np.zeros(len(framed), bool)
        for at, repeat in enumerate(repeats.tolist()):
            self._repeated = self._repeated + 1 if repeat else 0
            skipped[at] = self._repeated > _MAX_REPEATED
        return skipped

    def finish(self) -> VadWindows:
        """The last window, padded with zeros; none when the samples ended with a whole window."""
        remainder = len(self._pending) - _CONTEXT
        return self.push(np.zeros(WINDOW - remainder if remainder else 0, np.float32))
