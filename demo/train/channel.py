"""Channel simulation: telephone band, codec, noise and level."""

import io
from random import Random

import numpy as np
import soundfile
import soxr

from speech.audio import SAMPLE_RATE

PHONE_RATE = 8_000
_PHONE_BAND_HZ = (250.0, 3500.0)


def phone_line(samples: np.ndarray, codec: str | None) -> np.ndarray:
    """16 kHz speech through an 8 kHz line, coded as ``ULAW``, ``GSM610`` or uncoded."""
    narrow = soxr.resample(band_pass(samples, SAMPLE_RATE, *_PHONE_BAND_HZ), SAMPLE_RATE, PHONE_RATE)
    if codec:
        buffer = io.BytesIO()
        soundfile.write(buffer, np.clip(narrow, -1, 1), PHONE_RATE, format="WAV", subtype=codec)
        buffer.seek(0)
        narrow, _ = soundfile.read(buffer, dtype="float32")
    return soxr.resample(narrow, PHONE_RATE, SAMPLE_RATE).astype(np.float32)


def band_pass(samples: np.ndarray, rate: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Keeps the band, with soft edges a tenth of an octave wide."""
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1 / rate)
    gain = 1 / (1 + (low_hz / np.maximum(hz, 1.0)) ** 12) / (1 + (hz / high_hz) ** 24)
    return np.fft.irfft(spectrum * gain, len(samples)).astype(np.float32)


def set_level(samples: np.ndarray, peak_db: float) -> np.ndarray:
    """The samples with their peak at ``peak_db`` below full scale."""
    peak = float(np.abs(samples).max()) or 1.0
    return (samples * (10 ** (peak_db / 20) / peak)).astype(np.float32)


def noise_like(count: int, noise: np.random.Generator, smooth: int) -> np.ndarray:
    """Noise of unit power; ``smooth`` > 1 low-passes it (moving average of so many samples)."""
    samples = noise.standard_normal(count + smooth - 1)
    if smooth > 1:
        samples = np.convolve(samples, np.ones(smooth) / np.sqrt(smooth), mode="valid")
    return samples.astype(np.float32)


def random_channel(samples: np.ndarray, rng: Random) -> np.ndarray:
    """Adds noise (SNR 18 to 50 dB), passes half of all clips through a telephone line, and sets a random level."""
    noise = np.random.default_rng(rng.getrandbits(32))
    snr_db = rng.uniform(18, 50)
    speech_power = float(np.mean(samples**2)) or 1e-4
    hiss = noise_like(len(samples), noise, rng.choice((1, 1, 3, 8)))
    samples = samples + hiss * np.sqrt(speech_power / 10 ** (snr_db / 10)).astype(np.float32)
    if rng.random() < 0.5:
        samples = phone_line(set_level(samples, -3), rng.choice((None, "ULAW", "ULAW", "GSM610")))
    return set_level(samples, rng.uniform(-24, -1))
