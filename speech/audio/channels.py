"""Which channels of a file are speakers: two people on two channels, or one mixture written twice.

A call recorded in stereo has a speaker a channel and must be split; "stereo" that a player or a gateway
made from mono must not, or every sentence comes twice. The header can't tell, so the samples are measured.

Two channels are copies when one is the other times a constant. Over windows of a second their energies
and their product are summed. The gain that fits best, as the median over loud windows, is taken for that
constant, and a window differs when more than a fifth of its energy is left after it. Copies leave nothing,
or little where a codec has been at work: in eleven codings, at gains from -20 to +12 dB, no window of a
copy passed a fifth (AAC at 24 kbit/s came closest). A second voice leaves nearly all, and so does an echo;
crosstalk without delay, both ways and only 3 dB down, leaves a quarter.

Two seconds of difference anywhere in a file split it. A call shows them in its first sentence, and there
the measuring stops; mono written twice has to be read through.

Limit: one conversation recorded by two microphones in a room is two different channels here, and is
transcribed twice. Ask for ``mix`` or ``first``.
"""

from collections.abc import Iterable

import numpy as np

from speech.audio.decoding import AudioFile
from speech.errors import AudioError
from speech.recording import Recording

WINDOW_S = 1.0  # shorter ones see the noise that codecs put into consonants
MAX_RESIDUAL = 0.2
MIN_DIFFERENCE_S = 2.0
# Windows this far below the loudest one are pauses, whose hiss is never the same twice.
LOUD_RANGE_DB = 20.0
# While more is still to come, a level that speech is sure to pass; at the end, what is left of a whisper.
EARLY_FLOOR_DB, FINAL_FLOOR_DB = -45.0, -75.0
# A copy 30 dB down isn't a copy that anybody made.
MAX_GAIN = 30.0


# Which channels of the file each channel of the transcript is the average of.
ChannelGroups = tuple[tuple[int, ...], ...]


def select_channels(audio: AudioFile, recording: Recording) -> ChannelGroups:
    """The channels to be transcribed: ``((0,), (1,))`` is two speakers, ``((0, 1),)`` their mixture.

    Raises:
        AudioError: ``bad_channel`` when ``split`` was asked for and the file has fewer channels than
            speakers were named; besides what reading the stretch raises.
    """
    there, mode = audio.channels, recording.options.channels
    every: ChannelGroups = tuple((channel,) for channel in range(there))
    if mode == "split" and len(recording.speakers) > there:
        raise AudioError(
            "bad_channel",
            f"{recording.audio} has {there} channel(s) and is to be split among {len(recording.speakers)} speakers",
        )
    if there == 1 or mode == "split":
        return every
    if mode == "first":
        return every[:1]
    if mode == "mix":
        return (tuple(range(there)),)
    if channels_differ(audio.blocks(recording.offset, recording.duration), audio.sample_rate):
        return every
    return every[:1]


def average_groups(block: np.ndarray, groups: ChannelGroups) -> np.ndarray:
    """The chosen channels of a block of shape (frames, channels).

    Not a matrix product: BLAS would wake its threads for each block, and they spin on other cores.
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
    """Whether any channel says something that the first doesn't; reads no further than it must."""
    size = round(WINDOW_S * sample_rate)
    sums: list[np.ndarray] = []  # one array a block
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
    """Mean x², y² and xy of each window, for the first channel x beside every other y: (windows, 3, others)."""
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
    # xy / xx is the gain from x to y that fits a window best.
    gain = np.median(xy / np.maximum(xx, yy / MAX_GAIN**2))
    if not 1 / MAX_GAIN <= abs(gain) <= MAX_GAIN:
        gain = np.copysign(1.0, gain)  # one side is silent or unrelated: compare them as they are
    residual = yy - 2 * gain * xy + gain**2 * xx
    different = residual > MAX_RESIDUAL * np.maximum(yy, gain**2 * xx)
    return float(different.sum() * WINDOW_S) >= MIN_DIFFERENCE_S
