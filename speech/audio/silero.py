"""Silero VAD's network, as a few matrix products over many windows at once.

The ``silero-vad`` wheel's exports convolve one window's four frames at a time, products too small to use a core well.
Here the short-time Fourier transform is a real FFT, and a convolution over four frames is one matrix that all windows
of a block are multiplied by; only the LSTM goes from window to window. The weights are those of the wheel's sequence
export, and so are the probabilities, up to rounding: less than 1e-4.

onnxruntime runs it, because a session can be held to one thread: numpy's BLAS would start its own. Only the wheel's
model file is read: importing the package would import torch, which a CPU worker neither has nor needs.

Limit: the 16 kHz model is used for all audio. Telephone audio is resampled to 16 kHz for the recogniser in any case.
"""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx.numpy_helper import from_array, to_array

WINDOW = 512  # samples
CONTEXT = 64  # samples of the previous window that the network receives before each window
_FRAME, _HOP = 256, 128  # samples of the Fourier transforms, of which a window has _FRAMES
_FRAMES = 4
_BINS = _FRAME // 2 + 1
_HANN = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
_MODEL_FILE = "data/silero_vad_16k_sequence.onnx"

# Inputs named w and b are weights and biases: of the convolutions, the LSTM and the output.
_GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
silero (float[windows, magnitudes] magnitudes, float[1, 1, 128] h, float[1, 1, 128] c)
    => (float[windows] probabilities, float[1, 1, 128] hn, float[1, 1, 128] cn)
{
    y0 = Gemm(magnitudes, w0, b0)
    x0 = Relu(y0)
    y1 = Gemm(x0, w1, b1)
    x1 = Relu(y1)
    y2 = Gemm(x1, w2, b2)
    x2 = Relu(y2)
    y3 = Gemm(x2, w3, b3)
    x3 = Relu(y3)
    batch = Constant <value_ints = [1]> ()
    sequence = Unsqueeze(x3, batch)
    states, hn, cn = LSTM <hidden_size = 128> (sequence, w_input, w_hidden, b_lstm, , h, c)
    active = Relu(states)
    scaled = MatMul(active, w_output)
    biased = Add(scaled, b_output)
    likely = Sigmoid(biased)
    flat = Constant <value_ints = [-1]> ()
    probabilities = Reshape(likely, flat)
}
"""

State = tuple[np.ndarray, np.ndarray]  # the LSTM's hidden and cell state


class Silero:
    """The network: speech probabilities of consecutive windows of one channel. Holds no state; may be shared."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    @staticmethod
    def initial_state() -> State:
        return np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)

    def __call__(self, windows: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """Probabilities of shape (windows,), and the state after them.

        Args:
            windows: (windows, CONTEXT + WINDOW), float32 at 16 kHz, one or more.
            state: after the windows before.
        """
        hidden, cell = state
        probabilities, hidden, cell = self._session.run(
            ("probabilities", "hn", "cn"), {"magnitudes": _magnitudes(windows), "h": hidden, "c": cell}
        )
        return probabilities, (hidden, cell)


def load_silero() -> Silero:
    """The network on one thread: a Listener uses one core, and a node runs many."""
    package = importlib.util.find_spec("silero_vad")  # finds, doesn't import
    if package is None or package.origin is None:
        raise ModuleNotFoundError("silero-vad is not installed: its wheel contains the VAD model")
    model = _as_matrix_products(onnx.load(Path(package.origin).parent / _MODEL_FILE))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return Silero(onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]))


def _as_matrix_products(export: onnx.ModelProto) -> onnx.ModelProto:
    """``_GRAPH`` with the weights of the wheel's sequence export."""
    values = {initializer.name: to_array(initializer) for initializer in export.graph.initializer}
    _, *convolutions, output = (node for node in export.graph.node if node.op_type == "Conv")  # the first is the STFT
    [lstm] = (node for node in export.graph.node if node.op_type == "LSTM")
    names = ("w_input", "w_hidden", "b_lstm")
    weights = {name: values[source] for name, source in zip(names, lstm.input[1:4], strict=True)}
    weights["w_output"], weights["b_output"] = values[output.input[1]][:, :, 0].T, values[output.input[2]]
    frames = _FRAMES
    for layer, node in enumerate(convolutions):
        [stride] = next(attribute.ints for attribute in node.attribute if attribute.name == "strides")
        weights[f"w{layer}"], weights[f"b{layer}"] = _banded(
            values[node.input[1]], values[node.input[2]], frames, stride
        )
        frames = -(-frames // stride)
    model = onnx.parser.parse_model(_GRAPH)
    model.graph.initializer.extend(from_array(np.ascontiguousarray(value), name) for name, value in weights.items())
    return model


def _banded(kernel: np.ndarray, bias: np.ndarray, frames: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """A convolution with zero padding over a fixed number of frames, as a matrix and its bias.

    Args:
        kernel: (outputs, inputs, taps), with an odd number of taps.
        bias: (outputs,).
        frames: of the input.
        stride: of the output's frames.

    Returns:
        (frames · inputs, output frames · outputs), and the bias repeated for each frame.
    """
    outputs, inputs, taps = kernel.shape
    steps = -(-frames // stride)
    matrix = np.zeros((frames, inputs, steps, outputs), np.float32)
    for step in range(steps):
        for tap in range(taps):
            frame = step * stride + tap - taps // 2
            if 0 <= frame < frames:
                matrix[frame, :, step] = kernel[:, :, tap].T
    return matrix.reshape(frames * inputs, steps * outputs), np.tile(bias, steps)


def _magnitudes(windows: np.ndarray) -> np.ndarray:
    """Magnitude spectra of each window's frames: (windows, _FRAMES · _BINS)."""
    padded = np.pad(windows, ((0, 0), (0, _FRAME // 2 - CONTEXT)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME, axis=1)[:, ::_HOP]
    return np.abs(np.fft.rfft(frames * _HANN)).reshape(len(windows), _FRAMES * _BINS)
