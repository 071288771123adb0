"""The CPU stage: one recording in, the clips of its speech out, ready for an engine.

    open → select channels → decode → 16 kHz → VAD → speech regions → drop crosstalk → clips

Everything streams: in memory are one block of samples, for each channel the audio that a later clip may contain (at
most a clip's length), and the clips themselves. Clips are int16, half the size of float32 in Ray's object store, and
the same bytes in a batch and online.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from speech.audio.channels import ChannelGroups, ChannelMixer, select_channels
from speech.audio.clips import Clip
from speech.audio.decoders import FormatChanged
from speech.audio.decoding import MAX_CHANNEL_S, MAX_DURATION_S, AudioFile, AudioSource, open_audio, resampled
from speech.audio.recording_segmenter import RecordingSegmenter
from speech.audio.segmenting import Segmenter
from speech.audio.silero import load_silero
from speech.errors import AudioError
from speech.recording import AUTO, Recording
from speech.redaction import redact_uri

# dBFS, of the loudest half second of a recording. Below QUIET_DB the VAD misses speech, so the recording is read again
# with the gain that brings it to NORMAL_DB; below SILENCE_DB there is none.
SILENCE_DB, QUIET_DB, NORMAL_DB = -80.0, -40.0, -20.0
# Seconds of speech in a part of a recording: enough to fill an engine's batch for a while. A call to another process,
# some 20 ms, comes with each part.
PART_S = 30.0
# Seconds of work after which a part is given with less: for audio that arrives slowly.
PART_AFTER_S = 0.5
QUIET = "quiet"  # flag
SKIPPED_TRACKS = "skipped_tracks"  # flag


@dataclass(frozen=True, slots=True)
class ListenResult:
    """What the Listener passes to the Transcriber.

    Attributes:
        duration_s: length of what was read.
        speech_s: speech detected by the VAD, without padding, summed over channels. Far less than the call should
            have means that the VAD missed speech.
        channels: how many are transcribed, including silent ones.
        clips: in time order, by ``start_s`` and then channel.
        flags: what is doubtful about the audio: ``similar_channels`` (some speech may be on two channels, and be
            transcribed twice), ``quiet`` (amplified, because its level is too low for the VAD),
            ``skipped_tracks`` (some audio tracks have no decoder, and are missing).
    """

    duration_s: float
    speech_s: float
    channels: int
    clips: list[Clip]
    flags: tuple[str, ...] = ()


def join_parts(parts: Sequence[ListenResult]) -> ListenResult:
    """The whole of what ``Listener.stream`` yields."""
    return dataclasses.replace(parts[-1], clips=[clip for part in parts for clip in part.clips])


def open_local(uri: str) -> AudioSource:
    """A path, or a ``file:`` URI, as a path."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)


class Listener:
    """Cuts recordings into clips, one after another. Made once a process, because it holds the VAD's session."""

    def __init__(
        self,
        *,
        clip_s: float,
        open_audio: Callable[[str], AudioSource] = open_local,
        max_duration_s: float = MAX_DURATION_S,
        max_channel_s: float = MAX_CHANNEL_S,
    ) -> None:
        """
        Args:
            clip_s: the longest clip that the model takes, in seconds.
            open_audio: maps a recording's URI to a path or a seekable binary file, which is closed after use.
            max_duration_s: recordings, or ranges of them, longer than this are ``too_long``.
            max_channel_s: so are those whose channels together are longer than this.

        Raises:
            ValueError: ``clip_s`` is below ``speech.audio.segmenting.MIN_CLIP_S``.
        """
        Segmenter(clip_s)  # an invalid clip limit raises here, not at the first recording
        self._clip_s = clip_s
        self._open_source = open_audio
        self._max_duration_s = max_duration_s
        self._max_channel_s = max_channel_s
        self._vad = load_silero()

    def listen(self, recording: Recording, source: AudioSource | None = None) -> ListenResult:
        """Decodes one recording and cuts its speech into clips.

        Args:
            recording: its URI, range and options.
            source: its audio if the caller has it (an upload); otherwise the URI is opened.

        Raises:
            AudioError: the audio cannot be opened or decoded.
        """
        return join_parts(list(self.stream(recording, source)))

    def stream(self, recording: Recording, source: AudioSource | None = None) -> Iterator[ListenResult]:
        """As ``listen``, in parts, so that an engine can decode the first while the rest is cut.

        Each part has the clips since the part before, and otherwise what is known so far, the last of the whole. Parts
        have clips of PART_S, or those of PART_AFTER_S of work; of PART_S only where the language is to be detected from
        the first, so that it does not depend on the time it took. There is one part only where a decoder may find
        later that the file has more channels (``AudioFile.fixed_format``), and of quiet recordings.
        """
        name = redact_uri(recording.audio)
        with (
            self._source(recording.audio, name) if source is None else contextlib.nullcontext(source) as opened,
            open_audio(
                opened,
                name,
                max_duration_s=self._max_duration_s,
                max_channel_s=self._max_channel_s,
                raw_format=recording.options.raw_format,
            ) as audio,
        ):
            if audio.fixed_format:
                yield from self._cut(audio, recording)
                return
            while True:
                try:
                    whole = join_parts(list(self._cut(audio, recording)))
                except FormatChanged:  # the rest of the file has more channels, which are selected anew
                    continue
                yield whole
                return

    def _cut(self, audio: AudioFile, recording: Recording) -> Iterator[ListenResult]:
        """Selects the channels and cuts their speech; a quiet recording is amplified and cut again."""
        selection = select_channels(audio, recording)
        flags = selection.flags + ((SKIPPED_TRACKS,) if audio.skipped_tracks else ())
        segmenter = RecordingSegmenter(selection.groups, self._clip_s, self._vad, recording.offset)
        for part in self._parts(audio, recording, selection.groups, segmenter):
            if not SILENCE_DB < segmenter.level_db < QUIET_DB:
                yield dataclasses.replace(part, flags=flags)
                continue
            gain = 10 ** ((NORMAL_DB - segmenter.level_db) / 20)
            amplified = RecordingSegmenter(
                selection.groups, self._clip_s, self._vad, recording.offset, segmenter.amplification(gain)
            )
            whole = join_parts(list(self._parts(audio, recording, selection.groups, amplified)))
            yield dataclasses.replace(whole, flags=flags + ((QUIET,) if whole.clips else ()))

    def _parts(
        self, audio: AudioFile, recording: Recording, groups: ChannelGroups, segmenter: RecordingSegmenter
    ) -> Iterator[ListenResult]:
        """The clips that ``segmenter`` cuts: once it is known that the recording is not quiet, or else at its end."""
        frames = 0

        def selected() -> Iterator[np.ndarray]:
            nonlocal frames
            mixer = ChannelMixer(groups)
            for block in audio.blocks(recording.offset, recording.duration):
                frames += len(block)
                yield mixer.average(block)

        def part(clips: list[Clip]) -> ListenResult:
            return ListenResult(frames / audio.sample_rate, segmenter.speech_s, len(groups), clips)

        clips: list[Clip] = []
        begun = time.monotonic()
        for block in resampled(selected(), audio.sample_rate):
            segmenter.push(block)
            clips += segmenter.pop_clips()
            if not clips or segmenter.level_db < QUIET_DB:
                continue
            late = time.monotonic() >= begun + PART_AFTER_S and recording.options.language != AUTO
            if late or sum(clip.end_s - clip.start_s for clip in clips) >= PART_S:
                yield part(clips)
                clips, begun = [], time.monotonic()
        segmenter.finish()
        yield part(clips + segmenter.pop_clips())

    @contextlib.contextmanager
    def _source(self, uri: str, name: str) -> Iterator[AudioSource]:
        try:
            source = self._open_source(uri)
        except AudioError:
            raise
        except FileNotFoundError as error:
            raise AudioError("not_found", f"there is no {name}") from error
        except PermissionError as error:
            raise AudioError("forbidden", f"{name} may not be read: {error}") from error
        except Exception as error:  # openers raise whatever their object store raises; it fails the row, not the run
            raise AudioError("unreadable", f"{name} cannot be opened: {type(error).__name__}: {error}") from error
        with contextlib.ExitStack() as stack:
            if hasattr(source, "close"):
                stack.callback(source.close)
            yield source
