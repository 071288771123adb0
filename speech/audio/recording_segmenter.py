"""From the samples of a recording's channels to its clips, in time order."""

import functools
from collections.abc import Sequence
from operator import attrgetter

import numpy as np

from speech.audio import SAMPLE_RATE
from speech.audio.channels import ChannelGroups
from speech.audio.clips import Amplification, ChannelSegmenter, Clip
from speech.audio.crosstalk import CrosstalkDetector
from speech.audio.silero import Silero

_order = attrgetter("start_s", "channel")


class RecordingSegmenter:
    """Cuts the selected channels of one recording into clips, without the crosstalk between two.

    Args:
        groups: the channels of the file that each column of samples is the average of.
        clip_s: the longest clip that the model takes, in seconds.
        vad: from ``speech.audio.silero.load_silero``; may be shared.
        start_s: the time of the first sample.
        amplification: of each column.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        clip_s: float,
        vad: Silero,
        start_s: float = 0.0,
        amplification: Sequence[Amplification] | None = None,
    ) -> None:
        self._start_s = start_s
        self._crosstalk = CrosstalkDetector() if len(groups) == 2 else None
        self._segmenters = [
            ChannelSegmenter(
                group[0],
                clip_s,
                vad,
                start_s,
                amplification[column] if amplification else None,
                functools.partial(self._crosstalk.is_crosstalk, column) if self._crosstalk else None,
            )
            for column, group in enumerate(groups)
        ]
        self._finished = False
        self._found: list[Clip] = []  # before which there may be others yet

    @property
    def level_db(self) -> float:
        """The level of the loudest half second of any channel so far, in dBFS. It never falls."""
        return max(segmenter.level_db for segmenter in self._segmenters)

    @property
    def speech_s(self) -> float:
        """Speech so far, without padding, summed over channels."""
        return sum(segmenter.speech for segmenter in self._segmenters) / SAMPLE_RATE

    def amplification(self, gain: float) -> list[Amplification]:
        """Of each column by ``gain``, after its mean is subtracted."""
        return [Amplification(segmenter.dc, gain) for segmenter in self._segmenters]

    def push(self, block: np.ndarray) -> None:
        """Adds the next samples: float32, 16 kHz, of shape (frames, columns)."""
        if self._crosstalk is not None:
            self._crosstalk.discard_before(self._keep_from)
            self._crosstalk.push(block)
        for column, segmenter in enumerate(self._segmenters):
            segmenter.push(block[:, column])

    def finish(self) -> None:
        """Ends all channels, and with them open regions of speech."""
        for segmenter in self._segmenters:
            segmenter.finish()
        self._finished = True

    def pop_clips(self) -> list[Clip]:
        """The clips that are complete and before all that are still to come, since the last call; in time order."""
        found = self._found + [clip for segmenter in self._segmenters for clip in segmenter.pop_clips()]
        found.sort(key=_order)
        open_s = self._start_s + self._keep_from / SAMPLE_RATE
        count = len(found) if self._finished else sum(clip.start_s < open_s for clip in found)
        self._found = found[count:]
        return found[:count]

    @property
    def _keep_from(self) -> int:
        """The first sample that a later clip may contain."""
        return min(segmenter.keep_from for segmenter in self._segmenters)
