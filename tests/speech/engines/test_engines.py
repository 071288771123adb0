"""The engines on the demo checkpoint: batch invariance, agreement of both engines, limits and errors."""

import asyncio
import math
import random
import statistics
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, DecodingResult, Engine, EngineConfig, start_engine
from speech.engines.transformers import TransformersEngine
from speech.errors import EngineError, UsageError
from speech.models.checkpoint import family_of
from speech.recording import Options
from testing.engines import RunningEngine

pytestmark = pytest.mark.engine

MODEL = "demo/model"


@pytest.fixture(scope="module")
def clips(sample_clips: list[ClipRequest]) -> list[ClipRequest]:
    """Speech of many lengths."""
    lengths = {len(clip.samples) // 1600: clip for clip in sample_clips}  # to a tenth of a second, one of each
    chosen = list(lengths.values())[:12]
    assert len(chosen) >= 6
    return chosen


def with_ids(clips: list[ClipRequest], prefix: str) -> list[ClipRequest]:
    return [replace(clip, id=f"{prefix}-{number}") for number, clip in enumerate(clips)]


def test_a_transcript_does_not_depend_on_the_batch(greedy: RunningEngine, clips: list[ClipRequest]) -> None:
    alone = [greedy.decode(clip)[0].token_ids for clip in with_ids(clips, "alone")]
    assert len(set(alone)) > len(clips) // 2  # mostly different transcripts, or equality would prove nothing
    order = list(range(len(clips)))
    for attempt in range(3):
        random.Random(attempt).shuffle(order)
        batch = greedy.decode(*with_ids([clips[index] for index in order], f"mix{attempt}"))
        assert [decoding.token_ids for decoding in batch] == [alone[index] for index in order]


def test_transformers_outputs_the_same_tokens_at_float32(greedy: RunningEngine, clips: list[ClipRequest]) -> None:
    reference = RunningEngine(EngineConfig(model=MODEL, engine="transformers", dtype="float32"))
    timed = [replace(clip, options=Options(word_timestamps=True)) for clip in clips]
    expected, found = reference.decode(*with_ids(timed, "hf")), greedy.decode(*with_ids(timed, "vllm"))
    reference.stop()
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    assert [each.text for each in found] == [each.text for each in expected]
    assert [each.usage for each in found] == [each.usage for each in expected]
    assert [each.hypothesis for each in found] == [each.hypothesis for each in expected]
    for each, other in zip(found, expected, strict=True):
        assert each.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-3)
        for word, same in zip(each.words, other.words, strict=True):
            assert (word.text, word.start_s, word.end_s) == (same.text, same.start_s, same.end_s)
            assert word.probability == pytest.approx(same.probability, abs=1e-3)
            assert word.ctc_score == pytest.approx(same.ctc_score, abs=1e-3)


def test_transformers_computes_a_cancelled_clip_to_its_end_before_the_next(
    clips: list[ClipRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, order, next_began = TransformersEngine._generate, list[str](), threading.Event()

    def recorded(engine: TransformersEngine, clip: ClipRequest) -> DecodingResult:
        order.append(f"begin {clip.id}")
        if clip.id == "next":
            next_began.set()
        else:
            next_began.wait(1)  # as long as a clip may take
        result = generate(engine, clip)
        order.append(f"end {clip.id}")
        return result

    async def cancel_first(engine: Engine) -> DecodingResult:
        first = asyncio.create_task(engine.decode(replace(clips[0], id="first")))
        while not order:
            await asyncio.sleep(0)
        first.cancel()
        return await engine.decode(replace(clips[1], id="next"))

    monkeypatch.setattr(TransformersEngine, "_generate", recorded)
    engine = start_engine(EngineConfig(model=MODEL, engine="transformers"), family_of(MODEL))
    assert asyncio.run(cancel_first(engine)).text
    engine.stop()
    assert order == ["begin first", "end first", "begin next", "end next"]


def test_words_have_times_and_confidences(greedy: RunningEngine, clips: list[ClipRequest]) -> None:
    timed = [replace(clip, options=Options(word_timestamps=True)) for clip in clips]
    plain, found = greedy.decode(*with_ids(clips, "plain")), greedy.decode(*with_ids(timed, "timed"))
    for clip, without, decoding in zip(clips, plain, found, strict=True):
        assert (decoding.token_ids, without.words) == (without.token_ids, ())
        assert [word.text for word in decoding.words] == decoding.text.split()
        times = [time for word in decoding.words for time in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert 0 <= times[0] < times[-1] <= clip.seconds + 0.02
        # All tokens but the end of the text are part of a word: its probability is what is left of the clip's.
        assert decoding.avg_logprob is not None
        words = sum(math.log(word.probability or 0) for word in decoding.words)
        assert words + 1e-3 >= decoding.avg_logprob * len(decoding.token_ids) >= words - 3
    scores = [word.ctc_score or 0 for decoding in found for word in decoding.words]
    assert statistics.median(scores) > 0.5


def test_tokens_are_counted(greedy: RunningEngine, clips: list[ClipRequest]) -> None:
    [decoding] = greedy.decode(replace(clips[0], id="counted"))
    usage = decoding.usage
    # Granite Speech has ten audio tokens a second, three for each window of the Q-Former.
    assert usage.audio_tokens == pytest.approx(10 * clips[0].seconds, abs=3)
    assert usage.prompt_tokens > usage.audio_tokens
    assert usage.output_tokens == len(decoding.token_ids)
    assert decoding.complete


def test_output_tokens_are_limited_by_the_duration_of_the_clip(greedy: RunningEngine) -> None:
    noise = (np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE) * 8000).astype(np.int16)
    [decoding] = greedy.decode(ClipRequest(noise, Options(), id="noise"))
    assert len(decoding.token_ids) <= family_of(MODEL).max_tokens(2.0)


def test_a_clip_that_the_engine_refuses_does_not_affect_the_next(
    greedy: RunningEngine, clips: list[ClipRequest]
) -> None:
    many = tuple(f"keyword number {number} which is much too long to fit" for number in range(199))
    too_long = ClipRequest(clips[0].samples, Options(keywords=many), id="too-long")
    with pytest.raises(EngineError) as refused:
        greedy.decode(too_long)
    assert refused.value.code == "engine_refused"
    assert greedy.decode(replace(clips[0], id="next"))[0].text


def test_the_error_has_the_path_of_a_checkpoint_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "granite_speech"}')
    with pytest.raises(UsageError, match=str(tmp_path)):
        start_engine(EngineConfig(model=str(tmp_path), engine="transformers"), family_of(MODEL))


def test_a_clip_too_short_to_be_encoded_does_not_affect_the_others(
    greedy: RunningEngine, clips: list[ClipRequest]
) -> None:
    with pytest.raises(EngineError) as refused:
        greedy.decode(ClipRequest(np.zeros(200, np.int16), Options(), id="too-short"))
    assert refused.value.code == "engine_refused"
    assert greedy.decode(replace(clips[0], id="after-too-short"))[0].text
