"""The CPU half: one recording in, its stretches of speech out, ready for an engine.

    open → channels → decode → 16 kHz → VAD → segments → not a leak? → clips

Everything streams: in memory are one block of samples, for each channel the audio that no decision has
been made on yet (at most a clip's length), and the clips themselves. Clips are int16, half of what float32
would take through Ray's object store, and the same bytes whether the recording came in a batch or online.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from onnxruntime import InferenceSession

from speech.channels import chosen_channels, taken
from speech.decoding import MAX_DURATION_S, SAMPLE_RATE, AudioSource, open_audio, resampled
from speech.errors import AudioError
from speech.leakage import Leakage
from speech.recording import Recording
from speech.segmenting import Segment, Segmenter
from speech.uris import public_uri
from speech.vad import SpeechDetector, load_silero


@dataclass(frozen=True, slots=True)
class Clip:
    """One stretch of speech on one channel.

    Attributes:
        channel: the channel in the file; 0 for a mixture and for mono written twice.
        start_s, end_s: in the time of the file, so a recording's ``offset`` is counted in.
        samples: int16, mono, 16 kHz.
    """

    channel: int
    start_s: float
    end_s: float
    samples: np.ndarray


@dataclass(frozen=True, slots=True)
class Heard:
    """What the CPU half hands to the engine half.

    Attributes:
        duration_s: of the stretch that was read.
        speech_s: speech the VAD found, without padding, summed over channels. Far less than the call
            should hold means that the VAD, not the speaker, was silent.
        channels: how many were transcribed, silent ones among them.
        clips: in time order, by ``start_s`` and then channel.
    """

    duration_s: float
    speech_s: float
    channels: int
    clips: list[Clip]


def open_local(uri: str) -> AudioSource:
    """A path, or a ``file:`` URI, as a path."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)


class Listener:
    """Hears recordings one after another; made once a process, since it holds the VAD's session."""

    def __init__(
        self,
        *,
        clip_s: float,
        open_audio: Callable[[str], AudioSource] = open_local,
        max_duration_s: float = MAX_DURATION_S,
    ) -> None:
        """
        Args:
            clip_s: the longest clip that the model takes.
            open_audio: from a recording's URI to a path or a seekable binary file, which is closed after use.
            max_duration_s: a recording, or the stretch of one, beyond this is ``too_long``.
        """
        Segmenter(clip_s)  # a clip limit that can't be kept shows here, not in the first row
        self._clip_s = clip_s
        self._open_source = open_audio
        self._max_duration_s = max_duration_s
        self._vad = load_silero()

    def listen(self, recording: Recording, source: AudioSource | None = None) -> Heard:
        """Decodes one recording and cuts its speech.

        Args:
            recording: what is asked for.
            source: its audio where it is at hand, as that of an upload is; else its URI is opened.

        Raises:
            AudioError: whatever is wrong with the audio.
        """
        name = public_uri(recording.audio)
        with (
            self._source(recording.audio, name) if source is None else contextlib.nullcontext(source) as opened,
            open_audio(opened, name, max_duration_s=self._max_duration_s) as audio,
        ):
            groups = chosen_channels(audio, recording)
            frames = 0

            def wanted() -> Iterator[np.ndarray]:
                nonlocal frames
                for block in audio.blocks(recording.offset, recording.duration):
                    frames += len(block)
                    yield taken(block, groups)

            leakage = Leakage() if len(groups) == 2 else None
            ears = [Ear(channel, self._clip_s, self._vad, recording.offset, leakage) for channel in range(len(groups))]
            for block in resampled(wanted(), audio.sample_rate):
                if leakage is not None:
                    leakage.forget(min(ear.keep_from for ear in ears))
                    leakage.hear(block)
                for ear in ears:
                    ear.hear(block[:, ear.channel])
        for ear in ears:
            ear.finish()
        clips = [clip for ear in ears for clip in ear.take()]
        return Heard(
            duration_s=frames / audio.sample_rate,
            speech_s=sum(ear.speech for ear in ears) / SAMPLE_RATE,
            channels=len(ears),
            clips=sorted(clips, key=lambda clip: (clip.start_s, clip.channel)),
        )

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
        except Exception as error:  # an opener fails as its object store does; the row fails, not the run
            raise AudioError("unreadable", f"{name} can't be opened: {type(error).__name__}: {error}") from error
        with contextlib.ExitStack() as stack:
            if hasattr(source, "close"):
                stack.callback(source.close)
            yield source


class Ear:
    """One channel's way from samples to clips, whether they come from a file or as they are spoken.

    Args:
        channel: what its clips are said to be of.
        clip_s: the longest clip that the model takes.
        vad: of ``load_silero``; may be shared.
        start_s: the time of its first sample.
        leakage: knows the other channel, where there is one.
    """

    def __init__(
        self,
        channel: int,
        clip_s: float,
        vad: InferenceSession,
        start_s: float = 0.0,
        leakage: Leakage | None = None,
    ) -> None:
        self.channel = channel
        self._start_s = start_s
        self._leakage = leakage
        self.speech = 0
        self._detector = SpeechDetector(vad)
        self._segmenter = Segmenter(clip_s)
        self._undecided: list[np.ndarray] = []  # int16 blocks that later segments may need, the first from _from on
        self._from = self._heard = 0
        self._cut: list[tuple[Segment, np.ndarray]] = []

    @property
    def keep_from(self) -> int:
        """The first sample that a later segment may still hold."""
        return self._segmenter.keep_from

    def hear(self, samples: np.ndarray) -> None:
        """Takes the next samples: float32, 16 kHz."""
        self._undecided.append(_as_int16(samples))
        self._heard += len(samples)
        self._keep(self._segmenter.push(self._detector.push(samples)))
        self._forget()

    def finish(self) -> None:
        """Ends the channel, and with it the speech that is being heard."""
        self._keep(self._segmenter.push(self._detector.finish()))
        self._keep(self._segmenter.finish(self._heard))
        self._undecided.clear()

    def take(self) -> list[Clip]:
        """The clips that have become certain since the last call."""
        clips = [self._clip(cut.start, cut.end, samples) for cut, samples in self._cut]
        self._cut.clear()
        return clips

    def unfinished(self) -> Clip | None:
        """The speech that is being heard, as far as it has come; None in a pause."""
        if not self._segmenter.speaking:
            return None
        return self._clip(self.keep_from, self._heard, np.concatenate(self._undecided)[self.keep_from - self._from :])

    def _clip(self, start: int, end: int, samples: np.ndarray) -> Clip:
        return Clip(self.channel, self._start_s + start / SAMPLE_RATE, self._start_s + end / SAMPLE_RATE, samples)

    def _keep(self, segments: list[Segment]) -> None:
        if not segments:
            return
        audio = np.concatenate(self._undecided)
        for found in segments:
            if self._leakage is not None and self._leakage.is_leak(self.channel, found):
                continue
            end = min(found.end, self._heard)
            self._cut.append((found, audio[found.start - self._from : end - self._from].copy()))
            self.speech += found.speech

    def _forget(self) -> None:
        while self._undecided and self._from + len(self._undecided[0]) <= self.keep_from:
            self._from += len(self._undecided.pop(0))


def _as_int16(samples: np.ndarray) -> np.ndarray:
    scaled = np.rint(samples * 32768.0)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)
