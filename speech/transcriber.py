"""The engine half: decodes the clips of a Listener's result into a transcript. One class for bulk and online.

Every clip of every recording is a request of its own and all are sent at once, so that the engine's batch is full
whatever the lengths of the recordings; results are put in time order.
"""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from speech.audio import SAMPLE_RATE
from speech.audio.clips import Clip
from speech.clip_slots import ClipSlots
from speech.engines.base import ClipRequest, DecodingResult, Engine, LanguageDetector
from speech.engines.gpu_errors import check_gpu
from speech.errors import EngineDied
from speech.listener import ListenResult
from speech.models.families import Family
from speech.models.languages import most_probable
from speech.models.tags import speaker_turns
from speech.quality.agreement import agreement, agreement_flags
from speech.quality.flags import segment_flags
from speech.recording import AUTO, Options, Recording
from speech.transcript import Agreement, Segment, Transcript, Usage, Word
from speech.words import UNSPACED_LANGUAGES, word_spans

# A smaller share of speech than this in a recording is flagged: the VAD may have missed speech.
LITTLE_SPEECH = 0.05
# The language is detected from the first clips that are so long together: what Whisper hears at once.
DETECTION_S = 30.0
WARM_UP_ID = "warm-up/0"  # the request id of the warm-up clip

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ClipTranscript:
    """One clip's segments (several where the model tags speaker turns) and its token counts."""

    segments: tuple[Segment, ...]
    usage: Usage


class Transcriber:
    """Transcribes listened recordings with one engine. Used from one event loop.

    Args:
        engine: decodes the clips.
        family: the model family, which says what the model can do.
        model: the model's name, for the output.
        concurrent_clips: how many clips the engine decodes at once. A tenth more are sent to it, so that
            its batch stays full; the rest wait here (``ClipSlots``).
        clips_per_recording: how many of them may be of one recording; None for no limit.
        clip_timeout_s: an engine that takes longer for one clip counts as dead.
    """

    def __init__(
        self,
        engine: Engine,
        family: Family,
        model: str,
        concurrent_clips: int,
        clip_timeout_s: float = 600.0,
        clips_per_recording: int | None = None,
    ) -> None:
        self.engine = engine
        self._family = family
        self._model = model
        slots = math.ceil(1.1 * concurrent_clips)
        self._slots = ClipSlots(slots, clips_per_recording or slots)
        self._clip_timeout_s = clip_timeout_s
        self._clip_count = 0
        self.queued_audio_s = 0.0  # seconds of audio that are pending or in flight

    async def warm_up(self) -> None:
        """Decodes a second of silence, so that the engine's set-up for its first clip (seconds) is part of loading."""
        await self._in_time(self.engine.decode(ClipRequest(np.zeros(SAMPLE_RATE, np.int16), Options(), WARM_UP_ID)))

    async def transcribe(self, recording: Recording, listened: ListenResult) -> Transcript:
        """Decodes all clips of a recording.

        Raises:
            EngineError: a clip failed; the engine can be used further.
            EngineDied: the engine cannot be used any more.
        """
        start = time.perf_counter()
        recording = await self.detect_language(recording, listened)
        clips = [clip async for clip in self.stream(recording, listened)]
        return whole_transcript(recording, self._model, listened, clips, time.perf_counter() - start)

    async def stream(
        self, recording: Recording, listened: ListenResult, *, live: bool = False
    ) -> AsyncGenerator[ClipTranscript, None]:
        """Decodes all clips concurrently and yields them in time order, each as soon as those before it are done.

        Args:
            recording: what is asked for.
            listened: its clips.
            live: whether they are decoded before those of recordings that are not live.
        """
        recording = await self.detect_language(recording, listened, live=live)
        tasks = [self._start_clip(recording, clip, live) for clip in listened.clips]
        try:
            for task in tasks:
                yield await task
        finally:  # a clip failed, or the caller was cancelled: the rest is not needed
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def detect_language(self, recording: Recording, listened: ListenResult, *, live: bool = False) -> Recording:
        """The recording in the language that is spoken in its first clips; unchanged unless it is to be detected.

        Nor is it changed if nobody speaks.

        Raises:
            EngineError, EngineDied: as of ``transcribe``.
        """
        if recording.options.language != AUTO or not listened.clips:
            return recording
        first = _first_clips(listened.clips)
        probabilities = await asyncio.gather(*(self._language_logprobs(recording, clip, live) for clip in first))
        return recording.in_language(*most_probable(probabilities))

    async def _language_logprobs(self, recording: Recording, clip: Clip, live: bool) -> dict[str, float]:
        assert isinstance(self.engine, LanguageDetector)  # else Family.check has refused the language
        async with self._slots.acquire(recording.id, live=live):
            return await self._in_time(self.engine.language_logprobs(self._request(recording, clip)))

    def _start_clip(self, recording: Recording, clip: Clip, live: bool) -> asyncio.Task[ClipTranscript]:
        """Starts decoding a clip; it counts as queued until its task is done."""
        seconds = clip.end_s - clip.start_s

        def subtract(task: asyncio.Task[ClipTranscript]) -> None:
            self.queued_audio_s -= seconds

        self.queued_audio_s += seconds
        task = asyncio.create_task(self._decode(recording, clip, live))
        task.add_done_callback(subtract)
        return task

    async def _decode(self, recording: Recording, clip: Clip, live: bool) -> ClipTranscript:
        async with self._slots.acquire(recording.id, live=live):
            decoding = await self._in_time(self.engine.decode(self._request(recording, clip)))
        return ClipTranscript(tuple(_segments(recording, clip, decoding)), decoding.usage)

    def _request(self, recording: Recording, clip: Clip) -> ClipRequest:
        self._clip_count += 1
        return ClipRequest(clip.samples, recording.options, id=f"{recording.id}/{self._clip_count}")

    async def _in_time(self, answer: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._clip_timeout_s):
                return await answer
        except TimeoutError as error:
            raise EngineDied(
                "engine_stuck", f"the engine took over {self._clip_timeout_s:.0f} s for one clip"
            ) from error
        except Exception as error:
            check_gpu(error)
            raise


def whole_transcript(
    recording: Recording, model: str, listened: ListenResult, clips: Iterable[ClipTranscript], transcribe_s: float
) -> Transcript:
    """The transcript of a recording from those of its clips.

    Args:
        recording: what was asked for.
        model: the model's name.
        listened: the Listener's result; its own clips are not used.
        clips: in time order.
        transcribe_s: seconds of decoding.
    """
    segments: list[Segment] = []
    usage = Usage()
    for clip in clips:
        segments += clip.segments
        usage += clip.usage
    return Transcript(
        recording=recording,
        model=model,
        text=join_text(segments, recording.options),
        segments=tuple(segments),
        flags=_recording_flags(segments, listened),
        duration_s=listened.duration_s,
        speech_s=listened.speech_s,
        channels=listened.channels,
        usage=usage,
        transcribe_s=transcribe_s,
    )


def _first_clips(clips: list[Clip]) -> list[Clip]:
    """The first clips, until they are DETECTION_S long together."""
    ends_s = itertools.accumulate(clip.end_s - clip.start_s for clip in clips)
    return clips[: sum(end_s < DETECTION_S for end_s in ends_s) + 1]


def join_text(segments: list[Segment], options: Options) -> str:
    """The text of a recording: its segments in time order."""
    return segment_separator(options).join(segment.text for segment in segments if segment.text)


def segment_separator(options: Options) -> str:
    """The separator between the texts of two segments."""
    language = options.target_language or options.language
    return "" if language in UNSPACED_LANGUAGES else " "


def _segments(recording: Recording, clip: Clip, decoding: DecodingResult) -> list[Segment]:
    """A clip's text as segments: one, or one a speaker turn where the model tags them."""
    options = recording.options
    turns = speaker_turns(decoding.text) if options.speaker_tags else []
    turns = turns or [(None, decoding.text)]
    spoken = " ".join(words for _, words in turns)  # without tags, which would count as speech in the speaking rate
    text_flags = segment_flags(spoken, clip.end_s - clip.start_s, decoding.avg_logprob, decoding.complete)
    compared = _agreement(spoken, decoding, options)
    words = iter([_in_recording(word, clip) for word in decoding.words])
    return [
        Segment(
            channel=clip.channel,
            speaker=speaker or recording.speaker(clip.channel),
            start_s=round(clip.start_s, 3),
            end_s=round(clip.end_s, 3),
            text=text,
            avg_logprob=decoding.avg_logprob,
            flags=(*text_flags, *(agreement_flags(compared) if compared else ())),
            words=tuple(itertools.islice(words, len(word_spans(text, options.language)))),
            agreement=compared,
        )
        for speaker, text in turns
    ]


def _agreement(spoken: str, decoding: DecodingResult, options: Options) -> Agreement | None:
    """The agreement of a clip's words with the CTC hypothesis, where the two are in one language."""
    if decoding.hypothesis is None or options.task != "transcribe":
        return None
    return agreement(spoken, decoding.hypothesis)


def _in_recording(word: Word, clip: Clip) -> Word:
    """A clip's word with times from the start of the recording, within the clip's."""
    start_s, end_s = (round(min(clip.start_s + time_s, clip.end_s), 3) for time_s in (word.start_s, word.end_s))
    return replace(word, start_s=start_s, end_s=end_s)


def _recording_flags(segments: list[Segment], listened: ListenResult) -> tuple[str, ...]:
    """Each flag of the segments once, and those of the recording as a whole."""
    flags = dict.fromkeys(flag for segment in segments for flag in segment.flags)
    flags |= dict.fromkeys(listened.flags)
    if not segments:  # a clip has one at least
        flags["no_speech"] = None
    elif listened.speech_s < LITTLE_SPEECH * listened.duration_s:
        flags["little_speech"] = None
    return tuple(flags)
