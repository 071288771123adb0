"""Speculative decoding: no draft changes the text, and good drafts save steps."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, DecodingResult, EngineConfig, start_engine
from speech.engines.speculation import DRAFT_TOKENS, ctc_can_help, method_for
from speech.engines.vllm import VllmEngine
from speech.errors import UsageError
from speech.models.checkpoint import family_of
from speech.models.families import GRANITE_4_0, WHISPER
from speech.recording import Options
from testing.engines import RunningEngine
from testing.loops import LoopThread

pytestmark = pytest.mark.engine

MODEL = "demo/model"
SHORT_CLIPS = 240
# A KV cache of some 30 blocks: with 48 clips at once, most are preempted now and then, and prefilled again in chunks.
SMALL = EngineConfig(model=MODEL, kv_cache_gb=0.0115, concurrent_clips=48)


class ScriptedEngine(VllmEngine):
    """Takes the drafter's ``extra_args`` of a clip from the test, where it gives any."""

    def __init__(self, config: EngineConfig, extra_args: dict[str, Any]) -> None:
        super().__init__(config, family_of(config.model))
        self._extra_args = extra_args

    def _sampling(self, clip: ClipRequest, draft: dict[str, Any]) -> Any:
        return super()._sampling(clip, self._extra_args.get(clip.id, draft))


class ScriptedRunningEngine(RunningEngine):
    """A running engine with speculation; ``extra_args`` for its drafter can be set by the id of the clip."""

    def __init__(self, config: EngineConfig) -> None:
        self.extra_args: dict[str, Any] = {}
        self._thread = LoopThread()
        self._engine: ScriptedEngine = ScriptedEngine(config, self.extra_args)

    @property
    def engine(self) -> ScriptedEngine:
        return self._engine


@pytest.fixture(scope="module")
def clips(sample_clips: list[ClipRequest]) -> list[ClipRequest]:
    """All clips of the sample calls, and many short ones cut out of them at random."""
    rng, whole = random.Random(0), [clip.samples for clip in sample_clips]
    cut = []
    for _ in range(SHORT_CLIPS):
        samples = rng.choice(whole)
        start = rng.randrange(max(1, len(samples) - SAMPLE_RATE))
        cut.append(samples[start : start + rng.randint(SAMPLE_RATE // 2, 6 * SAMPLE_RATE)])
    return [
        ClipRequest(samples, Options(), str(number))
        for number, samples in enumerate([*whole, *cut])
        if len(samples) > SAMPLE_RATE // 4
    ]


@pytest.fixture(scope="module")
def plain(greedy: RunningEngine, clips: list[ClipRequest]) -> list[DecodingResult]:
    """Plain greedy decoding of every clip (which does not depend on the batch: see test_engines)."""
    return greedy.decode(*clips)


@pytest.fixture(scope="module")
def drafting() -> Iterator[ScriptedRunningEngine]:
    engine = ScriptedRunningEngine(SMALL.model_copy(update={"speculation": "ctc"}))
    yield engine
    engine.stop()


def test_the_text_is_that_of_plain_greedy_decoding_whatever_the_draft(
    drafting: ScriptedRunningEngine, clips: list[ClipRequest], plain: list[DecodingResult]
) -> None:
    rng = random.Random(1)
    vocabulary = max(token for decoding in plain for token in decoding.token_ids) + 1
    assert len({decoding.token_ids for decoding in plain}) > len(plain) // 2  # or equality would prove little

    def draft(index: int) -> Any:
        right = list(plain[index].token_ids)
        kind = rng.choice(["none", "right", "wrong", "empty", "too long", "swapped", "errors"])
        if kind == "none":
            return None
        if kind == "swapped":
            return list(rng.choice(plain).token_ids)
        noise = rng.choices(range(vocabulary), k=rng.randint(1, 150))
        if kind == "errors":
            return [rng.choice(noise) if rng.random() < 0.1 else token for token in right if rng.random() > 0.05]
        return {"right": right, "wrong": noise, "empty": [], "too long": right + noise}[kind]

    for attempt in range(3):
        order = list(range(len(clips)))
        rng.shuffle(order)
        batch = [replace(clips[index], id=f"{attempt}-{index}") for index in order]
        for clip, index in zip(batch, order, strict=True):
            if rng.random() < 0.9:  # the others have the CTC hypothesis
                drafting.extra_args[clip.id] = {"draft": draft(index)}
        for found, index in zip(drafting.decode(*batch), order, strict=True):
            expected = plain[index]
            assert (found.token_ids, found.complete) == (expected.token_ids, expected.complete)
            assert found.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-3)


def test_ctc_drafts_save_most_steps(
    drafting: ScriptedRunningEngine,
    sample_clips: list[ClipRequest],
    clips: list[ClipRequest],
    plain: list[DecodingResult],
) -> None:
    found = drafting.decode(*(replace(clip, id=f"ctc-{clip.id}") for clip in clips))
    assert [each.token_ids for each in found] == [each.token_ids for each in plain]
    # Of whole sentences only: on clips cut in the middle of words CTC and the model differ.
    whole = {len(clip.samples) for clip in sample_clips}
    usages = [one.usage for one, clip in zip(found, clips, strict=True) if len(clip.samples) in whole]
    tokens = sum(usage.output_tokens for usage in usages)
    accepted = sum(usage.accepted_draft_tokens for usage in usages)
    assert 0 < accepted < sum(usage.draft_tokens for usage in usages)
    assert tokens / (tokens - accepted) > 2


def test_a_correct_draft_takes_one_step_for_each_slice(
    drafting: ScriptedRunningEngine, clips: list[ClipRequest], plain: list[DecodingResult]
) -> None:
    index = max(range(len(clips)), key=lambda index: len(plain[index].token_ids))
    drafting.extra_args["right"] = {"draft": list(plain[index].token_ids)}
    [found] = drafting.decode(replace(clips[index], id="right"))
    usage = found.usage
    assert found.token_ids == plain[index].token_ids
    assert usage.accepted_draft_tokens == usage.draft_tokens
    slices = -(-usage.output_tokens // (DRAFT_TOKENS["ctc"] + 1))
    assert usage.output_tokens - usage.accepted_draft_tokens <= slices + 1


def test_translations_are_not_drafted_for(drafting: ScriptedRunningEngine, clips: list[ClipRequest]) -> None:
    translated = replace(clips[0], options=Options(task="translate", target_language="de"), id="german")
    keywords = replace(clips[0], options=Options(keywords=("zanzibar",)), id="keywords")
    german, with_keywords = drafting.decode(translated, keywords)
    assert german.usage.draft_tokens == 0
    assert with_keywords.usage.draft_tokens > 0


def test_drafts_are_proposed_up_to_the_end_of_the_context(
    drafting: ScriptedRunningEngine, clips: list[ClipRequest]
) -> None:
    # vLLM stops the drafts of a whole batch when one request nears the end; CTC drafts must neither stop nor fail.
    tokenizer, context = AutoTokenizer.from_pretrained(MODEL), 4096
    keywords = tuple(f"keyword number {number} of very many words that nobody says" for number in range(200))
    while len(tokenizer.encode(", ".join(keywords))) > context - 200:
        keywords = keywords[:-1]
    long_prompt = Options(keywords=keywords)
    found = drafting.decode(*(replace(clips[0], options=long_prompt, id=f"long-{number}") for number in range(2)))
    assert context - 250 < found[0].usage.prompt_tokens < context
    assert all(each.usage.draft_tokens > 0 for each in found)


@pytest.mark.parametrize("outcome", [Exception("vLLM 0.99 does not have input_batch"), [None]])
def test_a_drafter_that_cannot_be_bound_is_an_error_with_its_cause(
    drafting: ScriptedRunningEngine, clips: list[ClipRequest], monkeypatch: pytest.MonkeyPatch, outcome: Any
) -> None:
    async def bind(method: str, args: tuple[bool]) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(drafting.engine, "_prepared", None)
        patch.setattr(drafting.engine._llm, "collective_rpc", bind)
        with pytest.raises(UsageError, match=r"input_batch|no worker") as refused:
            drafting.decode(replace(clips[0], id="unbound"))
    assert refused.value.code == "bad_engine"
    assert drafting.decode(replace(clips[0], id="bound"))[0].text


@pytest.mark.parametrize(
    ("options", "drafted"),
    [
        (Options(), True),
        (Options(language="fr"), True),
        (Options(keywords=("zanzibar",)), True),
        (Options(language="ja"), False),
        (Options(punctuation=True), False),
        (Options(word_timestamps=True), True),
        (Options(speaker_tags=True), False),
        (Options(task="translate", target_language="de"), False),
    ],
)
def test_which_requests_are_drafted_for(options: Options, drafted: bool) -> None:
    assert ctc_can_help(options) is drafted


def test_auto_drafts_where_it_can_and_an_explicit_method_is_refused_where_it_cannot() -> None:
    assert method_for("auto", GRANITE_4_0, "vllm") == "ctc"
    assert method_for("auto", GRANITE_4_0, "transformers") is None
    assert method_for("auto", WHISPER, "vllm") is None
    assert method_for("off", GRANITE_4_0, "vllm") is None
    for family, engine in ((WHISPER, "vllm"), (GRANITE_4_0, "transformers")):
        with pytest.raises(UsageError, match="speculation 'ctc'"):
            method_for("ctc", family, engine)
        with pytest.raises(UsageError, match="speculation 'ctc'"):
            start_engine(EngineConfig(engine=engine, speculation="ctc"), family)
