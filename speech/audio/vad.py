"""How likely each 32 ms of a channel is speech, and how loud it is: Silero VAD, through onnxruntime alone.

The ``silero-vad`` wheel ships several exports of one model. The sequence export is used here: it takes
many windows in one call and hands back the LSTM's state, so that a long recording runs in blocks with
the probabilities of a single run, and without a call to Python for each window. Only the wheel's file is
read: importing the package would import torch, which a CPU worker neither has nor needs.

Limit: the model hears 16 kHz. At 8 kHz it would be cheaper, but telephone audio is brought to 16 kHz for
the recogniser anyway.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

WINDOW = 512  # samples a probability
_CONTEXT = 64  # samples of the window before that the model sees again
_STATE = (1, 1, 128)
_FLOOR = 1e-7  # of full-scale power; whatever is quieter than -70 dB is equally quiet
_MODEL_FILE = "data/silero_vad_16k_sequence.onnx"


class VadWindows(NamedTuple):
    """What is known of consecutive windows, an array each."""

    probabilities: np.ndarray
    levels_db: np.ndarray


def load_silero() -> onnxruntime.InferenceSession:
    """A session on the model, on one thread: a Listener is one core's worth, and a node runs many."""
    package = importlib.util.find_spec("silero_vad")  # finds, doesn't import
    if package is None or package.origin is None:
        raise ModuleNotFoundError("silero-vad is not installed: its wheel holds the VAD's weights")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(package.origin).parent / _MODEL_FILE
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


class SpeechDetector:
    """The VAD's ear on one channel: samples in, in blocks of any size; a probability a window out."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._hidden = np.zeros(_STATE, np.float32)
        self._cell = np.zeros(_STATE, np.float32)
        self._pending = np.zeros(_CONTEXT, np.float32)  # the context, then samples short of a window

    def push(self, samples: np.ndarray) -> VadWindows:
        """The windows that ``samples`` (float32, 16 kHz) completes."""
        samples = np.concatenate([self._pending, samples])
        count = (len(samples) - _CONTEXT) // WINDOW
        self._pending = samples[count * WINDOW :]
        if not count:
            return VadWindows(np.zeros(0, np.float32), np.zeros(0, np.float32))
        # Overlapping views, so that each window begins with the end of the one before.
        framed = np.lib.stride_tricks.sliding_window_view(samples, _CONTEXT + WINDOW)[::WINDOW][:count]
        probabilities, self._hidden, self._cell = self._session.run(
            ("speech_probs", "hn", "cn"),
            {"input": np.ascontiguousarray(framed), "h": self._hidden, "c": self._cell},
        )
        own = samples[_CONTEXT : _CONTEXT + count * WINDOW].reshape(count, WINDOW)
        power = np.einsum("ws,ws->w", own, own) / WINDOW
        return VadWindows(probabilities, 10 * np.log10(power + _FLOOR))

    def finish(self) -> VadWindows:
        """The last window, filled up with silence; none when the samples ended with a window."""
        short = len(self._pending) - _CONTEXT
        return self.push(np.zeros(WINDOW - short if short else 0, np.float32))
