"""The engine half: what the Listener heard, made into a transcript.

One class for bulk and online. Every clip of every recording goes to the engine on its own, at once,
so that the engine's batch is full whatever the lengths of the recordings; the answers are put back
in the order of time.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np

from speech.audio import SAMPLE_RATE
from speech.audio.clips import Clip
from speech.engines.base import ClipRequest, DecodingResult, Engine
from speech.errors import EngineDied
from speech.listener import ListenResult
from speech.models.families import Family
from speech.models.tags import speaker_turns, timed_words, without_time_tags
from speech.quality.flags import segment_flags
from speech.recording import Options, Recording
from speech.transcript import Segment, Transcript, Usage

# Languages written without spaces between words: texts of segments are joined without one, too.
UNSPACED_LANGUAGES = frozenset({"ja", "zh", "th", "lo", "my", "km", "bo"})
# Less than this share of a recording being speech deserves a look: perhaps the detector ate the call.
LITTLE_SPEECH = 0.05
WARM_UP_ID = "warm-up/0"  # the id of a clip that is of no recording


@dataclass(frozen=True, slots=True)
class ClipTranscript:
    """One clip's segments (several where the model tells speakers apart) and what they cost."""

    segments: tuple[Segment, ...]
    usage: Usage


class Transcriber:
    """Turns heard recordings into transcripts with one engine. Used from one event loop.

    Args:
        engine: decodes the clips.
        family: what the engine's model can do.
        model: its name, for the output.
        concurrent_clips: how many clips the engine decodes at once. A few more than that are handed
            over, so that it never waits; the rest stay here, where they cost nothing.
        clip_timeout_s: an engine that takes longer over one clip is stuck, and as good as dead.
    """

    def __init__(
        self, engine: Engine, family: Family, model: str, concurrent_clips: int, clip_timeout_s: float = 600.0
    ) -> None:
        self.engine = engine
        self._family = family
        self._model = model
        self._slots = asyncio.Semaphore(math.ceil(1.1 * concurrent_clips))
        self._clip_timeout_s = clip_timeout_s
        self._clips_taken = 0
        self.queued_audio_s = 0.0  # seconds of audio in hand, not yet decoded

    async def warm_up(self) -> None:
        """Decodes a second of silence. What an engine sets up with its first clip takes seconds: part of loading."""
        await self.engine.decode(ClipRequest(np.zeros(SAMPLE_RATE, np.int16), Options(), WARM_UP_ID))

    async def transcribe(self, recording: Recording, listened: ListenResult) -> Transcript:
        """Decodes all clips of a recording.

        Raises:
            EngineError: a clip failed; the engine goes on.
            EngineDied: the engine is gone.
        """
        start = time.perf_counter()
        segments: list[Segment] = []
        usage = Usage()
        async for clip in self.stream(recording, listened):
            segments += clip.segments
            usage += clip.usage
        return Transcript(
            recording=recording,
            model=self._model,
            text=join_text(segments, recording.options),
            segments=tuple(segments),
            flags=_recording_flags(segments, listened),
            duration_s=listened.duration_s,
            speech_s=listened.speech_s,
            channels=listened.channels,
            usage=usage,
            transcribe_s=time.perf_counter() - start,
        )

    async def stream(self, recording: Recording, listened: ListenResult) -> AsyncGenerator[ClipTranscript, None]:
        """Decodes all clips at once and yields them in the order of time, each as soon as it can be."""
        tasks = [self._start_clip(recording, clip) for clip in listened.clips]
        try:
            for task in tasks:
                yield await task
        finally:  # one failed, or the listener has hung up: what is left would be work for nobody
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start_clip(self, recording: Recording, clip: Clip) -> asyncio.Task[ClipTranscript]:
        """Sets a clip to be decoded; until that has ended somehow, it counts as queued."""
        seconds = clip.end_s - clip.start_s

        def ended(task: asyncio.Task[ClipTranscript]) -> None:
            self.queued_audio_s -= seconds

        self.queued_audio_s += seconds
        task = asyncio.create_task(self._decode(recording, clip))
        task.add_done_callback(ended)
        return task

    async def _decode(self, recording: Recording, clip: Clip) -> ClipTranscript:
        async with self._slots:
            self._clips_taken += 1
            request = ClipRequest(clip.samples, recording.options, id=f"{recording.id}/{self._clips_taken}")
            try:
                async with asyncio.timeout(self._clip_timeout_s):
                    decoding = await self.engine.decode(request)
            except TimeoutError as error:
                raise EngineDied(
                    "engine_stuck", f"the engine took over {self._clip_timeout_s:.0f} s for one clip"
                ) from error
        return ClipTranscript(tuple(_segments(recording, clip, decoding)), decoding.usage)


def join_text(segments: list[Segment], options: Options) -> str:
    """The text of a whole recording: its segments in the order of time."""
    return segment_separator(options).join(segment.text for segment in segments if segment.text)


def segment_separator(options: Options) -> str:
    """What stands between the texts of two segments."""
    language = options.target_language or options.language
    return "" if language in UNSPACED_LANGUAGES else " "


def _segments(recording: Recording, clip: Clip, decoding: DecodingResult) -> list[Segment]:
    """A clip's text as segments: one, or one a speaker turn where the model marks them."""
    options = recording.options
    text = without_time_tags(decoding.text) if options.word_timestamps else decoding.text
    turns = speaker_turns(text) if options.speaker_tags else []
    turns = turns or [(None, text)]
    spoken = " ".join(words for _, words in turns)  # tags are no speech: they would look like too much of it
    found = segment_flags(spoken, clip.end_s - clip.start_s, decoding.avg_logprob, decoding.complete)
    words = timed_words(decoding.text, clip.start_s) if options.word_timestamps else []
    return [
        Segment(
            channel=clip.channel,
            speaker=speaker or recording.speaker(clip.channel),
            start_s=round(clip.start_s, 3),
            end_s=round(clip.end_s, 3),
            text=text,
            avg_logprob=decoding.avg_logprob,
            flags=(*found, *decoding.flags),
            words=tuple(words),
        )
        for speaker, text in turns
    ]


def _recording_flags(segments: list[Segment], listened: ListenResult) -> tuple[str, ...]:
    """Every flag of a segment, once, and those that only the whole recording shows."""
    raised = dict.fromkeys(flag for segment in segments for flag in segment.flags)
    if not listened.clips:
        raised["no_speech"] = None
    elif listened.speech_s < LITTLE_SPEECH * listened.duration_s:
        raised["little_speech"] = None
    return tuple(raised)
