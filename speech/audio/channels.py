"""Which channels of a file are transcribed: one speaker a channel, without copies and mixtures.

A call recorded in stereo has one speaker a channel and must be split. Dual mono (one signal on both channels) must
not be, or every sentence is transcribed twice; nor must a third channel that is the mixture of the first two. The
header does not say which it is, so the samples are compared (``ChannelComparison``). When in doubt, channels are kept.

Limit: one conversation recorded by two microphones in a room has two different channels and is transcribed twice.
Use ``mix`` or ``first``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from speech.audio.comparison import ChannelComparison
from speech.audio.decoding import AudioFile
from speech.errors import AudioError
from speech.recording import Recording

# For each channel of the transcript, the channels of the file that it is the average of.
ChannelGroups = tuple[tuple[int, ...], ...]
# Channels whose correlation is below this cancel each other in an average.
MAX_INVERTED_CORRELATION = -0.9
SIMILAR_CHANNELS = "similar_channels"  # flag: some text may be transcribed twice, once for each channel


@dataclass(frozen=True, slots=True)
class ChannelSelection:
    """Which channels to transcribe.

    Attributes:
        groups: ``((0,), (1,))`` for two speakers, ``((0, 1),)`` for their average.
        flags: what is doubtful about it.
    """

    groups: ChannelGroups
    flags: tuple[str, ...] = ()


def select_channels(audio: AudioFile, recording: Recording) -> ChannelSelection:
    """The channels to transcribe.

    Raises:
        AudioError: ``bad_channel`` when ``split`` was requested and the file has fewer channels than speakers;
            whatever ``AudioFile.blocks`` raises.
    """
    count, mode = audio.channels, recording.options.channels
    if mode == "split" and len(recording.speakers) > count:
        raise AudioError(
            "bad_channel",
            f"{recording.audio} has {count} channel(s) and cannot be split among {len(recording.speakers)} speakers",
        )
    if count == 1 or mode == "first":
        return ChannelSelection(((0,),))
    if mode == "mix":
        return ChannelSelection((tuple(range(count)),))
    if mode == "split":
        return ChannelSelection(tuple((channel,) for channel in range(count)))
    return compare_channels(audio.blocks(recording.offset, recording.duration), audio.sample_rate, count)


def compare_channels(blocks: Iterable[np.ndarray], sample_rate: int, channels: int) -> ChannelSelection:
    """The channels that are neither copies nor mixtures of others; stops reading as soon as all are known to differ."""
    comparison = ChannelComparison(channels, sample_rate)
    for block in blocks:
        if comparison.push(block):
            break
    result = comparison.result()
    groups = tuple((channel,) for channel in result.distinct)
    return ChannelSelection(groups, (SIMILAR_CHANNELS,) if result.similar else ())


class ChannelMixer:
    """Averages groups of channels, block by block. A channel that is the inverse of its group's first is inverted."""

    def __init__(self, groups: ChannelGroups) -> None:
        self._groups = groups
        self._signs = {channel: 1 for group in groups for channel in group}

    def average(self, block: np.ndarray) -> np.ndarray:
        """The average of each group of a block of shape (frames, channels): (frames, groups).

        Not a matrix product: BLAS would start its threads for each block, and they spin on other cores.
        """
        if all(len(group) == 1 for group in self._groups):
            return block[:, [channel for (channel,) in self._groups]]
        out = np.zeros((len(block), len(self._groups)), np.float32)
        for column, group in enumerate(self._groups):
            self._find_inverted(block, group)
            for channel in group:
                if self._signs[channel] > 0:
                    out[:, column] += block[:, channel]
                else:
                    out[:, column] -= block[:, channel]
            out[:, column] /= len(group)
        return out

    def _find_inverted(self, block: np.ndarray, group: tuple[int, ...]) -> None:
        first, *others = group
        for channel in others:
            if self._signs[channel] > 0 and _correlation(block[:, first], block[:, channel]) < MAX_INVERTED_CORRELATION:
                self._signs[channel] = -1


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; 0 where a signal is constant."""
    x, y = x - x.mean(), y - y.mean()
    xx, yy, xy = (float(np.einsum("t,t->", a, b)) for a, b in ((x, x), (y, y), (x, y)))
    return xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else 0.0
