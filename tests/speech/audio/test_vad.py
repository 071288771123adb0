"""The VAD in blocks returns the probabilities of Silero's streaming export."""

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from speech.audio.silero import WINDOW, Silero, load_silero
from speech.audio.vad import SpeechDetector
from testing.synthetic_audio import at_rate, call, silence

SAMPLES = at_rate(np.concatenate([call()[0].sum(axis=1), silence(0.123)]), 16_000)


@pytest.fixture(scope="module")
def silero() -> Silero:
    return load_silero()


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    """Silero's streaming export, one window a call, as in its README."""
    package = importlib.util.find_spec("silero_vad")
    assert package is not None
    assert package.origin is not None
    model = onnxruntime.InferenceSession(str(Path(package.origin).parent / "data" / "silero_vad.onnx"))
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    probabilities = []
    padded = np.pad(SAMPLES, (0, -len(SAMPLES) % WINDOW))
    for window in padded.reshape(-1, 1, WINDOW):
        framed = np.concatenate([context, window], axis=1)
        probability, state = model.run(None, {"input": framed, "state": state, "sr": np.array(16_000)})
        context = framed[:, -64:]
        probabilities.append(probability[0, 0])
    return np.array(probabilities)


@pytest.mark.parametrize("block", [100, WINDOW, 5000, 10**9])
def test_probabilities_are_those_of_the_streaming_export(block: int, silero: Silero, reference: np.ndarray) -> None:
    detector = SpeechDetector(silero)
    pushed = [detector.push(SAMPLES[at : at + block]) for at in range(0, len(SAMPLES), block)]
    probabilities = np.concatenate([windows.probabilities for windows in (*pushed, detector.finish())])
    assert probabilities.shape == reference.shape
    assert np.abs(probabilities - reference).max() < 1e-4
    assert 0.3 < (reference > 0.5).mean() < 0.9, "the recording should hold both speech and silence"


def test_levels_are_the_power_of_each_window(silero: Silero) -> None:
    detector = SpeechDetector(silero)
    tone = np.sin(np.arange(10 * WINDOW) * np.pi / 16).astype(np.float32)
    windows = detector.push(np.concatenate([tone, tone / 10, np.zeros(2 * WINDOW, np.float32)]))
    assert windows.levels_db == pytest.approx([-3.01] * 10 + [-23.01] * 10 + [-70.0] * 2, abs=0.05)


def test_whole_windows_are_not_followed_by_a_padded_one(silero: Silero) -> None:
    detector = SpeechDetector(silero)
    detector.push(np.zeros(3 * WINDOW, np.float32))
    assert len(detector.finish().probabilities) == 0
    detector.push(np.zeros(1, np.float32))
    assert len(detector.finish().probabilities) == 1
