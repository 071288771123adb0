"""The VAD in blocks returns the probabilities of Silero's streaming export."""

import importlib.util
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
import pytest

from speech.audio.vad import WINDOW, SpeechDetector, load_silero
from testing.synthetic_audio import at_rate, call, silence

SAMPLES = at_rate(np.concatenate([call()[0].sum(axis=1), silence(0.123)]), 16_000)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return load_silero()


@pytest.fixture(scope="module")
def reference(session: onnxruntime.InferenceSession) -> np.ndarray:
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
def test_probabilities_are_those_of_the_streaming_export(
    block: int, session: onnxruntime.InferenceSession, reference: np.ndarray
) -> None:
    detector = SpeechDetector(session)
    pushed = [detector.push(SAMPLES[at : at + block]) for at in range(0, len(SAMPLES), block)]
    probabilities = np.concatenate([windows.probabilities for windows in (*pushed, detector.finish())])
    assert probabilities.shape == reference.shape
    assert np.abs(probabilities - reference).max() < 1e-4
    assert 0.3 < (reference > 0.5).mean() < 0.9, "the recording should hold both speech and silence"


def test_levels_are_the_power_of_each_window(session: onnxruntime.InferenceSession) -> None:
    detector = SpeechDetector(session)
    tone = np.sin(np.arange(10 * WINDOW) * np.pi / 16).astype(np.float32)
    windows = detector.push(np.concatenate([tone, tone / 10, np.zeros(2 * WINDOW, np.float32)]))
    assert windows.levels_db == pytest.approx([-3.01] * 10 + [-23.01] * 10 + [-70.0] * 2, abs=0.05)


class CountingSession:
    """Counts the windows that the model receives."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.windows = 0

    def run(self, names: tuple[str, ...], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.windows += len(feed["input"])
        return list(self._session.run(names, feed))


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_minutes_of_constant_input_cost_two_minutes_of_the_model(
    value: float, session: onnxruntime.InferenceSession
) -> None:
    counting = CountingSession(session)
    minutes = np.full(10 * 60 * 16_000, value, np.float32)
    detector, every_window = SpeechDetector(cast(onnxruntime.InferenceSession, counting)), SpeechDetector(session)
    pushed = [detector.push(block) for block in np.array_split(minutes, 40)]
    assert counting.windows * WINDOW < 2.1 * 60 * 16_000
    assert sum(len(windows.probabilities) for windows in pushed) == len(minutes) // WINDOW
    assert max(windows.probabilities.max() for windows in pushed) < 0.2

    for start in range(0, 4 * 60 * 16_000, 160_000):  # as much as the state needs to converge
        every_window.push(minutes[start : start + 160_000])
    after, expected = detector.push(SAMPLES), every_window.push(SAMPLES)
    assert np.abs(after.probabilities[: len(expected.probabilities)] - expected.probabilities).max() < 0.05


def test_whole_windows_are_not_followed_by_a_padded_one(session: onnxruntime.InferenceSession) -> None:
    detector = SpeechDetector(session)
    detector.push(np.zeros(3 * WINDOW, np.float32))
    assert len(detector.finish().probabilities) == 0
    detector.push(np.zeros(1, np.float32))
    assert len(detector.finish().probabilities) == 1
