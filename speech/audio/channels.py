"""Which channels of a file are transcribed: one speaker a channel, or the first of a dual-mono file.

A call recorded in stereo has one speaker a channel and must be split. Dual mono (one signal on both channels) must
not be, or every sentence is transcribed twice. The header does not say which it is, so the samples are compared.

Two channels are copies when one is the other times a constant gain. Energies and the cross product are summed over
windows of one second. The gain is the median, over loud windows, of the least-squares gain; a window differs when
more than a fifth of its energy is left after subtraction. Copies leave nothing, or little after lossy coding: in
eleven codecs, at gains from -20 to +12 dB, no window of a copy left a fifth (AAC at 24 kbit/s came closest). A second
voice leaves nearly all, and so does an echo; crosstalk without delay, both ways and only 3 dB down, leaves a quarter.

Two seconds of difference anywhere in a file split it. A call has them in its first sentence, where the comparison
stops; a dual-mono file is read to its end.

Limit: one conversation recorded by two microphones in a room has two different channels and is transcribed twice.
Use ``mix`` or ``first``.
"""

from collections.abc import Iterable

import numpy as np

from speech.audio.decoding import AudioFile
from speech.errors import AudioError
from speech.recording import Recording

WINDOW_S = 1.0  # shorter windows are dominated by coding noise in consonants
MAX_RESIDUAL = 0.2
MIN_DIFFERENCE_S = 2.0
# Windows this far below the loudest one are pauses: the noise in them is independent in each channel.
LOUD_RANGE_DB = 20.0
# dBFS. Before the end of the file, a level that speech certainly exceeds; at the end, the level of a faint whisper.
EARLY_FLOOR_DB, FINAL_FLOOR_DB = -45.0, -75.0
# A ratio; copies made in practice differ by less than 30 dB.
MAX_GAIN = 30.0

# For each channel of the transcript, the channels of the file that it is the average of.
ChannelGroups = tuple[tuple[int, ...], ...]


def select_channels(audio: AudioFile, recording: Recording) -> ChannelGroups:
    """The channels to transcribe: ``((0,), (1,))`` is two speakers, ``((0, 1),)`` their average.

    Raises:
        AudioError: ``bad_channel`` when ``split`` was requested and the file has fewer channels than speakers;
            whatever ``AudioFile.blocks`` raises.
    """
    count, mode = audio.channels, recording.options.channels
    every: ChannelGroups = tuple((channel,) for channel in range(count))
    if mode == "split" and len(recording.speakers) > count:
        raise AudioError(
            "bad_channel",
            f"{recording.audio} has {count} channel(s) and cannot be split among {len(recording.speakers)} speakers",
        )
    if count == 1 or mode == "split":
        return every
    if mode == "first":
        return every[:1]
    if mode == "mix":
        return (tuple(range(count)),)
    if channels_differ(audio.blocks(recording.offset, recording.duration), audio.sample_rate):
        return every
    return every[:1]


def average_groups(block: np.ndarray, groups: ChannelGroups) -> np.ndarray:
    """The average of each group of channels of a block of shape (frames, channels): (frames, groups).

    Not a matrix product: BLAS would start its threads for each block, and they spin on other cores.
    """
    if all(group == (channel,) for channel, group in enumerate(groups)):
        return block[:, : len(groups)]
    out = np.zeros((len(block), len(groups)), np.float32)
    for column, group in enumerate(groups):
        for channel in group:
            out[:, column] += block[:, channel]
        out[:, column] /= len(group)
    return out


def channels_differ(blocks: Iterable[np.ndarray], sample_rate: int) -> bool:
    """Whether any channel differs from the first; stops reading as soon as one does."""
    size = round(WINDOW_S * sample_rate)
    sums: list[np.ndarray] = []  # of each block
    rest: np.ndarray | None = None
    for block in blocks:
        samples = block if rest is None else np.concatenate([rest, block])
        whole = len(samples) // size * size
        rest = samples[whole:]
        sums.append(_window_sums(samples[:whole].reshape(-1, size, samples.shape[1])))
        if _differ(np.concatenate(sums), EARLY_FLOOR_DB):
            return True
    return bool(sums) and _differ(np.concatenate(sums), FINAL_FLOOR_DB)


def _window_sums(windows: np.ndarray) -> np.ndarray:
    """Mean x², y² and xy of each window, for the first channel x and each other channel y: (windows, 3, others)."""
    x, others = windows[:, :, :1], windows[:, :, 1:]
    xy = np.einsum("wti,wtc->wc", x, others)
    yy = np.einsum("wtc,wtc->wc", others, others)
    xx = np.broadcast_to(np.einsum("wti,wti->wi", x, x), yy.shape)
    return np.asarray(np.stack([xx, yy, xy], axis=1) / windows.shape[1])


def _differ(sums: np.ndarray, floor_db: float) -> bool:
    return any(_pair_differs(sums[:, :, other], floor_db) for other in range(sums.shape[2]))


def _pair_differs(sums: np.ndarray, floor_db: float) -> bool:
    xx, yy, xy = sums.T
    level = np.maximum(xx, yy)
    if not len(level):
        return False
    floor = max(level.max() * 10 ** (-LOUD_RANGE_DB / 10), 10 ** (floor_db / 10))
    loud = level >= floor
    if not loud.any():
        return False
    xx, yy, xy = xx[loud], yy[loud], xy[loud]
    # xy / xx is the least-squares gain from x to y in a window.
    gain = np.median(xy / np.maximum(xx, yy / MAX_GAIN**2))
    if not 1 / MAX_GAIN <= abs(gain) <= MAX_GAIN:
        gain = np.copysign(1.0, gain)  # one channel is silent or unrelated: compare without a gain
    residual = yy - 2 * gain * xy + gain**2 * xx
    different = residual > MAX_RESIDUAL * np.maximum(yy, gain**2 * xx)
    return float(different.sum() * WINDOW_S) >= MIN_DIFFERENCE_S
