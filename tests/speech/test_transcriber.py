"""The Transcriber with a fake engine that finishes its requests last in, first out."""

import asyncio
import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest

from speech.audio.clips import Clip
from speech.engines.base import ClipRequest
from speech.engines.fake import FakeEngine
from speech.errors import EngineDied, EngineError
from speech.listener import ListenResult
from speech.models.families import GRANITE_4_0, GRANITE_4_1_PLUS, WHISPER, Family
from speech.recording import Options, Recording
from speech.transcriber import Transcriber
from speech.transcript import Transcript, Usage, Word


def clip(number: int, start_s: float = 0.0, end_s: float = 2.0, channel: int = 0) -> Clip:
    """A clip whose samples are its number, by which ``numbered_engine`` identifies it."""
    return Clip(channel, start_s, end_s, np.full(round((end_s - start_s) * 100), number, np.int16))


def number_of(request: ClipRequest) -> int:
    return int(request.samples[0])


def numbered_engine(
    texts: Mapping[int, str] | None = None, *, fails: Collection[int] = (), dies: Collection[int] = (), **kwargs: Any
) -> FakeEngine:
    """Decodes clip N as ``texts[N]``, or "clip N"; clips in ``fails`` and ``dies`` raise at once."""

    async def fail(request: ClipRequest) -> None:
        number = number_of(request)
        if number in fails:
            raise EngineError("engine_failed", f"clip {number} failed")
        if number in dies:
            raise EngineDied("engine_died", f"clip {number} ended the engine")

    return FakeEngine(
        lambda request: (texts or {}).get(number_of(request), f"clip {number_of(request)}"),
        before=fail,
        usage=lambda request: Usage(audio_tokens=10, output_tokens=number_of(request)),
        **kwargs,
    )


def listened(*clips: Clip, duration_s: float = 10.0, speech_s: float = 5.0, channels: int = 1) -> ListenResult:
    return ListenResult(duration_s=duration_s, speech_s=speech_s, channels=channels, clips=list(clips))


def transcribe(
    engine: FakeEngine,
    result: ListenResult,
    *,
    family: Family = GRANITE_4_0,
    concurrent_clips: int = 100,
    speakers: tuple[str, ...] = (),
    **options: Any,
) -> Transcript:
    transcriber = Transcriber(engine, family, "a-model", concurrent_clips)
    recording = Recording(id="call", audio="call.wav", speakers=speakers, options=Options(**options))
    return asyncio.run(transcriber.transcribe(recording, result))


def test_segments_are_in_time_order() -> None:
    engine = numbered_engine(batch=5)
    transcript = transcribe(engine, listened(*(clip(n, start_s=2 * n, end_s=2 * n + 1.5) for n in range(5))))
    assert transcript.text == "clip 0 clip 1 clip 2 clip 3 clip 4"
    assert [segment.start_s for segment in transcript.segments] == [0, 2, 4, 6, 8]
    assert transcript.segments[1].end_s == 3.5
    assert transcript.status == "ok"
    assert (transcript.model, transcript.duration_s, transcript.speech_s, transcript.channels) == ("a-model", 10, 5, 1)


def test_usage_is_summed_over_clips() -> None:
    usage = transcribe(numbered_engine(), listened(*map(clip, range(4)))).usage
    assert (usage.audio_tokens, usage.output_tokens) == (40, 0 + 1 + 2 + 3)


def test_every_clip_is_a_request_with_samples_options_and_a_unique_id() -> None:
    engine = numbered_engine()
    transcribe(engine, listened(*map(clip, range(3))), keywords="Kim")
    assert len({request.id for request in engine.requests}) == 3
    assert all(request.options.keywords == ("Kim",) for request in engine.requests)
    np.testing.assert_array_equal(engine.requests[2].samples, clip(2).samples)


def test_request_ids_are_unique_across_concurrent_transcriptions_of_a_recording() -> None:
    engine = numbered_engine(batch=4)

    async def both() -> None:
        transcriber = Transcriber(engine, GRANITE_4_0, "a-model", 100)
        recording = Recording(id="call", audio="call.wav")
        await asyncio.gather(*(transcriber.transcribe(recording, listened(clip(0), clip(1))) for _ in range(2)))

    asyncio.run(both())
    assert len({request.id for request in engine.requests}) == 4


def test_speakers_are_named_by_channel() -> None:
    result = listened(clip(0, channel=0), clip(1, channel=1), clip(2, channel=2), channels=3)
    transcript = transcribe(numbered_engine(), result, speakers=("agent", "customer"))
    assert [(one.channel, one.speaker) for one in transcript.segments] == [(0, "agent"), (1, "customer"), (2, None)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"language": "en"}, "good morning"),
        ({"language": "ja"}, "goodmorning"),
        ({"language": "ja", "task": "translate"}, "good morning"),
        ({"task": "translate", "target_language": "zh"}, "goodmorning"),
    ],
)
def test_texts_are_joined_by_the_separator_of_the_language(options: dict[str, Any], text: str) -> None:
    engine = numbered_engine({0: "good", 1: "", 2: "morning"})
    assert transcribe(engine, listened(clip(0), clip(1), clip(2)), **options).text == text


# Flags


def test_flags_are_at_their_segment_and_once_at_the_recording() -> None:
    engine = numbered_engine({0: "hello", 1: "", 2: ""})
    transcript = transcribe(engine, listened(*map(clip, range(3))))
    assert [segment.flags for segment in transcript.segments] == [(), ("no_text",), ("no_text",)]
    assert transcript.flags == ("no_text",)


def test_incomplete_and_improbable_text_is_flagged() -> None:
    transcript = transcribe(numbered_engine(complete=False, avg_logprob=-2.0), listened(clip(0)))
    assert transcript.flags == ("cut_off", "low_confidence")
    assert transcript.segments[0].avg_logprob == -2.0


def test_flags_of_the_audio_are_flags_of_the_recording() -> None:
    result = dataclasses.replace(listened(clip(0)), flags=("similar_channels",))
    assert transcribe(numbered_engine(), result).flags == ("similar_channels",)


def test_no_speech_and_little_speech_are_flagged() -> None:
    silent = transcribe(numbered_engine(), listened(speech_s=0.0))
    assert (silent.text, silent.segments, silent.flags, silent.status) == ("", (), ("no_speech",), "ok")
    assert transcribe(numbered_engine(), listened(clip(0), duration_s=600, speech_s=2)).flags == ("little_speech",)


HEARD = "thank you"
INVENTED = "thank you for watching this video"


def test_words_that_ctc_did_not_hear_are_flagged() -> None:
    [segment] = transcribe(numbered_engine({0: INVENTED}, hypothesis=HEARD), listened(clip(0))).segments
    assert segment.flags == ("not_heard",)
    assert segment.agreement is not None
    assert segment.agreement.not_heard == ("for watching this video",)


def test_words_that_the_model_left_out_are_flagged() -> None:
    transcript = transcribe(numbered_engine({0: HEARD}, hypothesis=INVENTED), listened(clip(0)))
    assert transcript.flags == ("left_out",)


def test_a_translation_is_not_compared_with_what_was_heard() -> None:
    engine = numbered_engine({0: INVENTED}, hypothesis="merci")
    [segment] = transcribe(engine, listened(clip(0)), language="fr", task="translate", target_language="en").segments
    assert (segment.agreement, segment.flags) == (None, ())


def test_without_a_hypothesis_there_is_no_agreement() -> None:
    [segment] = transcribe(numbered_engine({0: INVENTED}), listened(clip(0))).segments
    assert (segment.agreement, segment.flags) == (None, ())


def test_tags_are_no_words_that_should_have_been_heard() -> None:
    text = "[Speaker 1]: thank you [Speaker 2]: for watching"
    engine = numbered_engine({0: text}, hypothesis="thank you for watching")
    transcript = transcribe(engine, listened(clip(0)), family=GRANITE_4_1_PLUS, speaker_tags=True)
    assert [each.agreement.not_heard_share for each in transcript.segments if each.agreement] == [
        0.0 for _ in transcript.segments
    ]
    assert transcript.flags == ()


# Tags


def test_speaker_turns_become_segments() -> None:
    engine = numbered_engine({0: "[Speaker 1]: hello [Speaker 2]: hi", 1: "no tag"})
    transcript = transcribe(
        engine, listened(clip(0), clip(1)), family=GRANITE_4_1_PLUS, speaker_tags=True, speakers=("agent",)
    )
    spoken = [(segment.speaker, segment.text) for segment in transcript.segments]
    assert spoken == [("Speaker 1", "hello"), ("Speaker 2", "hi"), ("agent", "no tag")]
    assert transcript.text == "hello hi no tag"


def test_a_clip_without_text_is_a_segment_with_speaker_tags_too() -> None:
    transcript = transcribe(numbered_engine({0: ""}), listened(clip(0)), family=GRANITE_4_1_PLUS, speaker_tags=True)
    assert [(segment.text, segment.flags) for segment in transcript.segments] == [("", ("no_text",))]


def test_word_times_count_from_the_start_of_the_file_and_end_with_the_clip() -> None:
    words = (Word("hello", 0.1, 0.45, 0.9, 0.8), Word("world", 0.45, 2.02))
    engine = FakeEngine(lambda _: "hello world", words=lambda *_: words)
    transcript = transcribe(engine, listened(clip(0, start_s=60, end_s=62)), word_timestamps=True)
    assert transcript.segments[0].words == (Word("hello", 60.1, 60.45, 0.9, 0.8), Word("world", 60.45, 62.0))


def test_words_belong_to_their_speakers_turn() -> None:
    words = tuple(Word(text, number, number + 1) for number, text in enumerate(("hello", "there", "hi")))
    engine = FakeEngine(lambda _: "[Speaker 1]: hello there [Speaker 2]: hi", words=lambda *_: words)
    transcript = transcribe(
        engine, listened(clip(0, end_s=9)), family=GRANITE_4_1_PLUS, word_timestamps=True, speaker_tags=True
    )
    assert [[word.text for word in segment.words] for segment in transcript.segments] == [["hello", "there"], ["hi"]]


def test_tags_are_kept_where_they_were_not_requested() -> None:
    assert transcribe(numbered_engine({0: "[Speaker 1]: hello"}), listened(clip(0))).text == "[Speaker 1]: hello"


# Failures


def test_a_failed_clip_fails_its_recording_and_cancels_the_rest() -> None:
    engine = numbered_engine(batch=100, fails={2})

    async def fail() -> list[int]:
        transcriber = Transcriber(engine, GRANITE_4_0, "a-model", 100)
        with pytest.raises(EngineError, match="clip 2"):
            await transcriber.transcribe(Recording(id="call", audio="call.wav"), listened(*map(clip, (2, 0, 1, 3))))
        # Checked before the loop ends: at its end asyncio.run would cancel leaked tasks and hide the leak.
        return sorted(map(number_of, engine.cancelled))

    assert asyncio.run(fail()) == [0, 1, 3]


def test_the_engine_is_usable_after_a_failed_recording() -> None:
    engine = numbered_engine(fails={1})

    async def in_sequence() -> str:
        transcriber = Transcriber(engine, GRANITE_4_0, "a-model", concurrent_clips=1)
        for _ in range(5):  # a slot that is not released would block a later one
            with pytest.raises(EngineError):
                await transcriber.transcribe(Recording(id="bad", audio="bad.wav"), listened(clip(0), clip(1), clip(2)))
        return (await transcriber.transcribe(Recording(id="good", audio="good.wav"), listened(clip(0)))).text

    assert asyncio.run(in_sequence()) == "clip 0"


@pytest.mark.engine
def test_an_engine_whose_gpu_is_lost_is_dead() -> None:
    import torch

    async def lose(request: ClipRequest) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(EngineDied, match="illegal memory access"):
        transcribe(FakeEngine(lambda request: "", before=lose), listened(clip(0)))


def test_a_dead_engine_is_not_a_failed_recording() -> None:
    with pytest.raises(EngineDied):
        transcribe(numbered_engine(dies={0}), listened(clip(0), clip(1)))


def test_cancellation_cancels_the_clips_in_flight() -> None:
    engine = numbered_engine(batch=100)

    async def cancel() -> list[int]:
        transcriber = Transcriber(engine, GRANITE_4_0, "a-model", 100)
        call = transcriber.transcribe(Recording(id="call", audio="call.wav"), listened(*map(clip, range(3))))
        work = asyncio.ensure_future(call)
        while engine.in_flight < 3:
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return sorted(map(number_of, engine.cancelled))

    assert asyncio.run(cancel()) == [0, 1, 2]


# Concurrency


def test_clips_in_flight_are_limited_across_recordings() -> None:
    """Ten slots and a tenth more for the queue, shared by the clips of all recordings."""
    engine = numbered_engine(batch=11)

    async def several() -> list[Transcript]:
        transcriber = Transcriber(engine, GRANITE_4_0, "a-model", concurrent_clips=10)
        calls = [Recording(id=str(n), audio=f"{n}.wav") for n in range(3)]
        return await asyncio.gather(
            *(
                transcriber.transcribe(call, listened(*(clip(11 * n + k) for k in range(11))))
                for n, call in enumerate(calls)
            )
        )

    texts = [transcript.text for transcript in asyncio.run(several())]
    assert texts == [" ".join(f"clip {11 * n + k}" for k in range(11)) for n in range(3)]
    assert engine.max_in_flight == 11


def test_the_stream_yields_clips_in_time_order() -> None:
    engine = numbered_engine({1: "second"})

    async def first_two() -> list[str]:
        transcriber = Transcriber(engine, GRANITE_4_0, "a-model", 100)
        stream = transcriber.stream(Recording(id="call", audio="call.wav"), listened(clip(0), clip(1)))
        return [decoded.segments[0].text async for decoded in stream]

    assert asyncio.run(first_two()) == ["clip 0", "second"]


def test_a_short_recording_is_decoded_in_turn_with_a_long_one_and_live_audio_first() -> None:
    order: list[str] = []

    async def record(request: ClipRequest) -> None:
        order.append(request.recording_id)
        await asyncio.sleep(0)

    async def decode(transcriber: Transcriber, name: str, clips: int, live: bool = False) -> None:
        recording = Recording(id=name, audio="call.wav")
        async for _ in transcriber.stream(recording, listened(*map(clip, range(clips))), live=live):
            pass

    async def scenario() -> None:
        transcriber = Transcriber(FakeEngine(before=record), GRANITE_4_0, "a-model", concurrent_clips=1)
        await asyncio.gather(
            decode(transcriber, "long", 30), decode(transcriber, "short", 3), decode(transcriber, "live", 2, live=True)
        )

    asyncio.run(scenario())
    in_flight = 2  # the slots of one concurrent clip, and a tenth more
    assert order[:in_flight] == ["long"] * in_flight
    assert order[in_flight : in_flight + 2] == ["live"] * 2
    assert order[in_flight + 2 : in_flight + 8].count("short") == 3


def test_the_language_is_detected_from_the_first_clips() -> None:
    """From those that reach 30 s together; all are then decoded in it."""

    def language(request: ClipRequest) -> dict[str, float]:
        german = 0.9 if number_of(request) < 3 else 1e-9
        return {"de": math.log(german), "en": math.log(1 - german)}

    engine = numbered_engine(languages=language)
    clips = [clip(number, start_s=20 * number, end_s=20 * number + 14) for number in range(5)]
    transcript = transcribe(engine, listened(*clips), family=WHISPER, language="auto")
    detected, decoded = engine.requests[:3], engine.requests[3:]
    assert sorted(number_of(request) for request in detected) == [0, 1, 2]
    assert {request.options.language for request in detected} == {"auto"}
    assert sorted(number_of(request) for request in decoded) == [0, 1, 2, 3, 4]
    assert {request.options.language for request in decoded} == {"de"}
    assert len({request.id for request in engine.requests}) == 8
    assert transcript.recording.options.language == "de"
    assert transcript.to_row()["language_probability"] == pytest.approx(0.9**3 / (0.9**3 + 0.1**3))


def test_no_language_is_detected_where_nobody_speaks() -> None:
    engine = numbered_engine()
    transcript = transcribe(engine, listened(), family=WHISPER, language="auto")
    assert (transcript.recording.options.language, transcript.to_row()["language_probability"]) == ("auto", None)
    assert not engine.requests


def test_a_translation_into_the_language_that_is_detected_is_a_transcription() -> None:
    transcript = transcribe(numbered_engine(), listened(clip(0)), family=WHISPER, language="auto", task="translate")
    assert (transcript.recording.options.language, transcript.recording.options.task) == ("en", "transcribe")
