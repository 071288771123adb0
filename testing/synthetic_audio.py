"""Test speech, and encoders for every format from the wheels of soundfile and PyAV.

The two sentences in data/ were synthesised once, so that tests need no synthesiser:

    flite -voice slt -t "Thank you for calling Northwind Energy. How can I help you?" -o a.wav
    flite -voice rms -t "Hello. My electricity bill is twice what I paid last month." -o c.wav
    sox a.wav -r 8000 -b 16 agent.flac silence 1 0.02 0.5% reverse silence 1 0.02 0.5% reverse
    (and the same from c.wav to customer.flac)
"""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr

DATA = Path(__file__).parent / "data"
RATE = 8000


@cache
def sentence(name: str) -> np.ndarray:
    """``agent`` or ``customer``: float32 at 8 kHz, without silence before and after."""
    samples: np.ndarray = soundfile.read(DATA / f"{name}.flac", dtype="float32")[0]
    return samples


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


@dataclass(frozen=True)
class Turn:
    channel: int
    start_s: float
    end_s: float


@cache
def call(exchanges: int = 1, pause_s: float = 1.5) -> tuple[np.ndarray, tuple[Turn, ...]]:
    """Agent on the left, customer on the right, taking turns with pauses between: (frames, channels) at 8 kHz."""
    parts, turns, at = [np.stack([silence(pause_s)] * 2, axis=1)], [], pause_s
    for _ in range(exchanges):
        for channel, name in enumerate(("agent", "customer")):
            words = sentence(name)
            turns.append(Turn(channel, at, at + len(words) / RATE))
            both = np.zeros((len(words) + round(pause_s * RATE), 2), np.float32)
            both[: len(words), channel] = words
            parts.append(both)
            at += len(both) / RATE
    return np.concatenate(parts), tuple(turns)


def sndfile(samples: np.ndarray, container: str, coding: str, rate: int = RATE) -> bytes:
    """A file written by libsndfile, of samples at 8 kHz resampled to ``rate``."""
    out = io.BytesIO()
    with soundfile.SoundFile(
        out, "w", rate, 1 if samples.ndim == 1 else samples.shape[1], format=container, subtype=coding
    ) as file:
        resampled = at_rate(samples, rate)
        for start in range(0, len(resampled), rate):  # libsndfile's Vorbis encoder overflows the stack on long writes
            file.write(resampled[start : start + rate])
    return out.getvalue()


def ffmpeg(
    samples: np.ndarray,
    container: str,
    codec: str,
    rate: int = RATE,
    gap_s: float = 0.0,
    start_s: float = 0.0,
    **options: Any,
) -> bytes:
    """A file written by FFmpeg, of samples at 8 kHz resampled to ``rate``.

    Args:
        gap_s: timestamps of the second half of the packets are that much later.
        start_s: all timestamps are that much later.
        options: of PyAV's ``add_stream``.
    """
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        packets = encoded(file, samples, codec, rate, start_s, **options)
        for number, packet in enumerate(packets):
            if gap_s and number >= len(packets) // 2:
                _delay(packet, gap_s)
            file.mux(packet)
    return out.getvalue()


def multitrack(tracks: Sequence[tuple[np.ndarray, int]], container: str, codec: str, start_s: float = 0.0) -> bytes:
    """A file written by FFmpeg with a track for each of ``tracks``, samples at 8 kHz and the rate of the track.

    With ``start_s`` the audio begins that much after the video, a second of black frames.
    """
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        video = _black_video(file) if start_s else []
        packets = [encoded(file, samples, codec, rate, start_s) for samples, rate in tracks]
        for packet in (*video, *itertools.chain(*packets)):
            file.mux(packet)
    return out.getvalue()


def encoded(
    file: av.container.OutputContainer, samples: np.ndarray, codec: str, rate: int, start_s: float = 0.0, **options: Any
) -> list[av.Packet]:
    """The packets of a new stream of ``file``, of samples at 8 kHz; timestamps are ``start_s`` later."""
    samples = at_rate(samples, rate)
    samples = samples[:, None] if samples.ndim == 1 else samples
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    stream = file.add_stream(codec, rate=rate, layout=layout, **options)
    assert isinstance(stream, av.AudioStream)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), "fltp", layout)
    frame.sample_rate, frame.pts = rate, 0
    resampler = av.AudioResampler(stream.format, layout, rate, stream.frame_size or None)
    frames = (*resampler.resample(frame), *resampler.resample(None), None)
    packets = [packet for part in frames for packet in stream.encode(part)]
    for packet in packets:
        _delay(packet, start_s)
    return packets


def _black_video(file: av.container.OutputContainer) -> list[av.Packet]:
    stream = file.add_stream("mpeg4", rate=5, width=64, height=48, pix_fmt="yuv420p")
    assert isinstance(stream, av.VideoStream)
    frames = [av.VideoFrame(64, 48, "yuv420p") for _ in range(5)]
    for number, frame in enumerate(frames):
        frame.pts = number
    return [packet for frame in (*frames, None) for packet in stream.encode(frame)]


def _delay(packet: av.Packet, seconds: float) -> None:
    assert packet.pts is not None
    packet.pts = packet.dts = packet.pts + round(seconds / packet.time_base)


def at_rate(samples: np.ndarray, rate: int) -> np.ndarray:
    return np.asarray(samples if rate == RATE else soxr.resample(samples, RATE, rate), np.float32)


def peak_correlation(decoded: np.ndarray, reference: np.ndarray, max_lag_s: float = 0.015, rate: int = 16_000) -> float:
    """The highest normalised correlation of two mono signals at any lag up to ``max_lag_s``."""
    size, lag = min(len(decoded), len(reference)), round(max_lag_s * rate)
    middle = reference[lag : size - lag]
    products = np.correlate(decoded[:size], middle, mode="valid")
    energies = np.convolve(decoded[:size] ** 2, np.ones(len(middle), np.float32), mode="valid")
    return float((products / np.sqrt(energies * np.sum(middle**2) + 1e-12)).max())
