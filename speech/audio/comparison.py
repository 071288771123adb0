"""Comparison of a file's channels by content: copies and mixtures are found, two speakers are kept apart.

Channels are compared in windows of one second, by their spectra from 150 Hz to 3.8 kHz: neither DC nor mains hum
takes part. In each window, the power of single frequencies is limited to a multiple of what 98 % of the frequencies
have at most, so that a tone (beep, ringing, harmonics of hum) common to both channels does not hide what differs.

Copies: y is a copy of x when y(t) = g x(t - d), with one gain g for the file (negative for inverted channels), and a
delay d of at most 5 ms, estimated anew every few seconds from the cross-correlation. g is the median of the windows'
least-squares gains. A window differs when more than half of its energy is left after subtraction. Copies leave
nothing, or little after lossy coding; a second voice leaves nearly all, and so does an echo. Crosstalk both ways and
only 3 dB down leaves a quarter, so windows with more than a fifth left count where there are many of them.

Only windows with content are compared: those within 20 dB of the file's loud ones, or 12 dB above its quietest (but
within 33 dB). The noise of pauses is independent in each channel.

Channels differ by two seconds of such windows, or half of the content of a shorter file; or by a fifth of a second in
which one channel has content and the other is silent, since that is never a copy.

Mixtures (three or more channels): a channel is a mixture when a fixed linear combination of at least two others leaves
less than a tenth of its energy. Of channels that explain each other (the sum of two explains each of them as well),
the one that correlates most with the others is the mixture.
"""

import itertools
from dataclasses import dataclass

import numpy as np

WINDOW_S = 1.0  # shorter windows are dominated by coding noise in consonants
LOW_HZ, HIGH_HZ = 150, 3800
TAPER_S = 0.05  # at both ends of a window, so that what is below LOW_HZ does not leak into the band
CHUNK_S = 4  # windows compared at a time, with one delay
MAX_DELAY_S = 0.005
DELAY_STEPS = 4  # per sample of a signal of twice HIGH_HZ
MAX_ALIGNED_CHANNELS = 4  # delays are searched for each pair; files with more channels are compared without
TONE_QUANTILE, TONE_RATIO = 0.98, 4.0

MAX_RESIDUAL = 0.5
DOUBTFUL_RESIDUAL, DOUBTFUL_SHARE = 0.2, 0.2  # windows with more than this left count if so many do
MAX_MIXTURE_RESIDUAL = 0.1
MIN_MIXTURE_SHARE = 0.05  # of the mixture's energy, that each of two other channels must have in it
MIN_DIFFERENCE_S = 2.0
MIN_DIFFERENCE_SHARE = 0.5  # of the content of a file that has less than twice MIN_DIFFERENCE_S
MIN_ONE_SIDED_S = 0.2
SILENT_RATIO = 0.01  # of energies: a channel this far below the other one is silent
MAX_GAIN = 30.0  # a ratio; copies made in practice differ by less than 30 dB

LOUD_RANGE_DB = 20.0
ABOVE_QUIETEST_DB, QUIETEST_RANGE_DB = 12.0, 45.0
# dBFS. Before the end of the file, a level that speech certainly exceeds; at the end, the level of a faint whisper.
EARLY_FLOOR_DB, FINAL_FLOOR_DB = -45.0, -75.0
SIMILAR_SHARE, SIMILAR_GAIN = 0.5, 2.0  # distinct channels of which so much is alike, at such gains, are flagged

_FRAME_S = 0.02  # unit of the time in which a one-sided window is active
_FRAME_RANGE = 0.1  # of energies: frames this far below the window's mean are pauses


@dataclass(frozen=True, slots=True)
class Comparison:
    """``distinct``: the channels that are neither copies nor mixtures; ``similar``: whether two of them are alike in
    most of what was compared, so that some speech may be on both."""

    distinct: tuple[int, ...]
    similar: bool


class ChannelComparison:
    """Compares the channels of one file, block by block.

    Args:
        channels: of the file.
        sample_rate: of the file, in Hz.
    """

    def __init__(self, channels: int, sample_rate: int) -> None:
        self._channels = channels
        self._spectra = _Spectra(sample_rate)
        self._rest = np.zeros((0, channels), np.float32)
        self._chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # gram, aligned products, active seconds
        self._known = False  # all channels differ
        self._next_decision = 0  # at this number of chunks

    def push(self, block: np.ndarray) -> bool:
        """Adds samples of shape (frames, channels); returns whether all channels are known to differ."""
        samples = np.concatenate([self._rest, block]) if len(self._rest) else block
        size = CHUNK_S * self._spectra.size
        whole = len(samples) // size * size
        self._rest = samples[whole:]
        chunks = (samples[start : start + size] for start in range(0, whole, size))
        self._known = any(self._measure(chunk) and self._all_differ() for chunk in chunks)
        return self._known

    def result(self) -> Comparison:
        """Ends the file, unless ``push`` has returned True."""
        floor_db, ended = (EARLY_FLOOR_DB, False) if self._known else (FINAL_FLOOR_DB, True)
        if ended:
            self._measure(np.pad(self._rest, ((0, -len(self._rest) % self._spectra.size), (0, 0))))
        if not self._chunks:
            return Comparison((0,), similar=False)
        gram, products, active_s = (np.concatenate(arrays) for arrays in zip(*self._chunks, strict=True))
        kept: list[int] = []
        similar = False
        for channel in range(self._channels):
            pairs = [
                compare_pair(products[:, (x, channel)][:, :, (x, channel)], active_s, floor_db, ended=ended)
                for x in kept
            ]
            if all(pair.differ for pair in pairs):
                kept.append(channel)
                similar = similar or any(pair.similar for pair in pairs)
        return Comparison(tuple(_without_mixtures(gram, kept, floor_db)), similar)

    def _measure(self, samples: np.ndarray) -> bool:
        """Measures some whole windows; returns whether there is any sound in them."""
        windows = samples.reshape(-1, self._spectra.size, self._channels)
        windows = windows[(windows != windows[:, :1]).any(axis=(1, 2))]
        if not len(windows):
            return False
        gram, products = self._spectra.products(windows)
        self._chunks.append((gram, products, _active_seconds(windows, gram, self._spectra.sample_rate)))
        return True

    def _all_differ(self) -> bool:
        """Whether what was measured so far is enough to keep every channel; in long files, not asked at each chunk."""
        if len(self._chunks) < self._next_decision:
            return False
        self._next_decision = len(self._chunks) * 9 // 8 + 1
        gram, products, active_s = (np.concatenate(arrays) for arrays in zip(*self._chunks, strict=True))
        channels = range(self._channels)
        return all(
            compare_pair(products[:, pair][:, :, pair], active_s, EARLY_FLOOR_DB, ended=False).differ
            for pair in itertools.combinations(channels, 2)
        ) and (self._channels == 2 or all(_is_no_mixture(gram, channel, self._channels) for channel in channels))


class _Spectra:
    """Energies and cross products of windows, from their spectra."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.size = round(WINDOW_S * sample_rate)
        edge = round(TAPER_S * sample_rate)
        ramp = np.sin(np.linspace(0, np.pi / 2, edge, endpoint=False)) ** 2
        self._taper = np.concatenate([ramp, np.ones(self.size - 2 * edge), ramp[::-1]]).astype(np.float32)
        high_hz = min(HIGH_HZ, 0.475 * sample_rate)
        self._band = slice(round(LOW_HZ * WINDOW_S), round(high_hz * WINDOW_S) + 1)
        self._scale = 2.0 / self.size**2  # from squared magnitudes to mean squares (Parseval)

    def products(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Products of channels, without delay and at the delay of the highest correlation.

        Args:
            windows: (windows, samples, channels).

        Returns:
            Two arrays of shape (windows, channels, channels): mean squares, and means of cross products.
        """
        channels = windows.shape[2]
        spectra = np.stack([self._spectrum(windows[:, :, channel]) for channel in range(channels)], axis=1)
        power = spectra.real**2 + spectra.imag**2
        total = power.sum(axis=1)
        limited = _tone_weights(total) * np.float32(self._scale)
        gram = np.zeros((len(windows), channels, channels))
        for channel in range(channels):
            gram[:, channel, channel] = np.einsum("wf,wf->w", power[:, channel], limited)
        aligned = gram.copy()
        for x, y in itertools.combinations(range(channels), 2):
            cross = spectra[:, x].conj() * spectra[:, y] * limited
            gram[:, x, y] = gram[:, y, x] = cross.real.sum(axis=1)
            if channels <= MAX_ALIGNED_CHANNELS:
                aligned[:, x, y] = aligned[:, y, x] = self._best_delay(cross)
            else:
                aligned[:, x, y] = aligned[:, y, x] = gram[:, x, y]
        return gram, aligned

    def _spectrum(self, samples: np.ndarray) -> np.ndarray:
        return np.fft.rfft(samples * self._taper, axis=1)[:, self._band]

    def _best_delay(self, cross: np.ndarray) -> np.ndarray:
        """Each window's product at the delay that has the highest product, in magnitude, over all windows."""
        steps = 2 * HIGH_HZ * DELAY_STEPS  # per second
        spectrum = np.zeros(steps // 2 + 1, np.complex64)
        spectrum[self._band.start : self._band.start + cross.shape[1]] = cross.sum(axis=0)
        correlation = np.fft.irfft(spectrum)
        limit = round(MAX_DELAY_S * steps)
        delays = np.arange(-limit, limit + 1)
        delay = delays[np.abs(correlation[delays]).argmax()] / steps
        if delay == 0:
            return np.asarray(cross.real.sum(axis=1))
        hz = np.arange(self._band.start, self._band.start + cross.shape[1]) / WINDOW_S
        return np.asarray((cross * np.exp(2j * np.pi * hz * delay).astype(np.complex64)).real.sum(axis=1))


def _without_mixtures(gram: np.ndarray, channels: list[int], floor_db: float) -> list[int]:
    """The channels without those that are mixtures of the others."""
    channels = list(channels)
    while len(channels) > 2:
        mixtures = [channel for channel in channels if _is_mixture(gram, channel, channels, floor_db)]
        if not mixtures:
            break
        energies = np.einsum("wcc->c", gram)
        correlation = gram.sum(axis=0) ** 2 / np.maximum(np.outer(energies, energies), 1e-20)
        channels.remove(max(mixtures, key=lambda channel: correlation[channel, channels].sum()))
    return channels


def _is_mixture(gram: np.ndarray, channel: int, channels: list[int], floor_db: float) -> bool:
    measured = mixture_residuals(gram, channel, [other for other in channels if other != channel])
    if measured is None:
        return False
    energies, residuals = measured
    active = _with_content(energies, floor_db)
    different = residuals[active] > MAX_MIXTURE_RESIDUAL * energies[active]
    return bool(active.any()) and not _enough(different, ended=True)


def _is_no_mixture(gram: np.ndarray, channel: int, channels: int) -> bool:
    """Whether two seconds of it so far cannot be explained by the other channels."""
    measured = mixture_residuals(gram, channel, [other for other in range(channels) if other != channel])
    energies, residuals = measured or (gram[:, channel, channel], gram[:, channel, channel])
    active = _with_content(energies, EARLY_FLOOR_DB)
    return _enough(residuals[active] > MAX_MIXTURE_RESIDUAL * energies[active], ended=False)


def _tone_weights(power: np.ndarray) -> np.ndarray:
    """Weights of shape (windows, frequencies) that limit the power of single frequencies."""
    rank = round(TONE_QUANTILE * (power.shape[1] - 1))
    limit = TONE_RATIO * np.partition(power, rank, axis=1)[:, rank, None]
    return np.asarray(np.minimum(1.0, limit / np.maximum(power, np.float32(1e-30))), np.float32)


def _active_seconds(windows: np.ndarray, gram: np.ndarray, sample_rate: int) -> np.ndarray:
    """The time in which the loudest channel of each window is active; a click is a frame or two.

    Measured only where a channel is silent, which is where it counts; elsewhere it is the window's length.
    """
    energies = np.einsum("wcc->wc", gram)
    seconds = np.full(len(windows), WINDOW_S)
    frame = round(_FRAME_S * sample_rate)
    for window in np.flatnonzero(energies.min(axis=1) < SILENT_RATIO * energies.max(axis=1)):
        samples = windows[window, :, energies[window].argmax()]
        samples = samples[: len(samples) // frame * frame] - samples.mean()
        frames = np.square(samples).reshape(-1, frame).mean(axis=1)
        seconds[window] = _FRAME_S * np.count_nonzero(frames > _FRAME_RANGE * frames.mean())
    return seconds


@dataclass(frozen=True, slots=True)
class Pair:
    """How two channels compare.

    Attributes:
        differ: whether they are not copies.
        similar: whether most of what was compared is alike, at nearly the same level.
    """

    differ: bool
    similar: bool


def compare_pair(products: np.ndarray, active_s: np.ndarray, floor_db: float, *, ended: bool) -> Pair:
    """Compares two channels by the products of their windows.

    Args:
        products: (windows, 2, 2), energies and cross products.
        active_s: (windows,), the seconds in which a one-sided window is active.
        floor_db: windows below this level, in dBFS, are not compared.
        ended: whether these are all windows of the file.
    """
    xx, yy, xy = products[:, 0, 0], products[:, 1, 1], products[:, 0, 1]
    active = _with_content(np.maximum(xx, yy), floor_db)
    xx, yy, xy = xx[active], yy[active], xy[active]
    if not len(xx):
        return Pair(differ=False, similar=False)
    # xy / xx is the least-squares gain from x to y in a window.
    gain = np.median(xy / np.maximum(xx, yy / MAX_GAIN**2))
    if not 1 / MAX_GAIN <= abs(gain) <= MAX_GAIN:
        gain = np.copysign(1.0, gain)  # one channel is silent or unrelated: compare without a gain
    residual = yy - 2 * gain * xy + gain**2 * xx
    share = residual / np.maximum(yy, gain**2 * xx)
    doubtful = share > DOUBTFUL_RESIDUAL
    different = doubtful if doubtful.mean() >= DOUBTFUL_SHARE else share > MAX_RESIDUAL
    one_sided = different & (np.minimum(xx, yy) < SILENT_RATIO * np.maximum(xx, yy))
    return Pair(
        differ=_enough(different, ended) or float(active_s[active][one_sided].sum()) >= MIN_ONE_SIDED_S,
        similar=bool(different.mean() < 1 - SIMILAR_SHARE and 1 / SIMILAR_GAIN < abs(gain) < SIMILAR_GAIN),
    )


def mixture_residuals(gram: np.ndarray, channel: int, others: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """A channel as a linear combination of others: each window's energy, and the energy left after subtraction.

    Args:
        gram: (windows, channels, channels).
        channel: the possible mixture.
        others: the channels that it may be a mixture of.

    Returns:
        Two arrays of shape (windows,); None when it has less than two channels in it.
    """
    trace = np.einsum("wcc->w", gram)
    mean = np.einsum("wcd,w->cd", gram, 1 / np.maximum(trace, 1e-12))
    within = mean[np.ix_(others, others)]
    weights = np.linalg.lstsq(within, mean[others, channel], rcond=1e-6)[0]
    if np.count_nonzero(weights**2 * np.diag(within) > MIN_MIXTURE_SHARE * mean[channel, channel]) < 2:
        return None
    explained = np.einsum("woq,o,q->w", gram[:, others][:, :, others], weights, weights)
    energy = gram[:, channel, channel]
    return np.maximum(energy, explained), energy - 2 * gram[:, channel, others] @ weights + explained


def _with_content(energies: np.ndarray, floor_db: float) -> np.ndarray:
    """Which windows are compared: a boolean array."""
    if not len(energies):
        return np.zeros(0, bool)
    levels = 10 * np.log10(energies + 1e-12)
    loud = np.sort(levels)[-1 - min(2, len(levels) // 8)]  # the loudest windows of a file may be clicks
    quietest = max(np.quantile(levels, 0.1), loud - QUIETEST_RANGE_DB)
    return np.asarray(
        (levels >= floor_db) & ((levels >= loud - LOUD_RANGE_DB) | (levels >= quietest + ABOVE_QUIETEST_DB))
    )


def _enough(different: np.ndarray, ended: bool) -> bool:
    """Whether enough of the windows with content differ."""
    seconds = float(different.sum() * WINDOW_S)
    if seconds >= MIN_DIFFERENCE_S:
        return True
    return ended and 0 < len(different) * WINDOW_S * MIN_DIFFERENCE_SHARE <= seconds
