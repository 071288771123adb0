"""The drafter beside a stand-in for vLLM's model runner: whose draft it is, and for how long."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from speech.granite import drafter as drafter_module
from speech.granite.acceptance import UNVERIFIED_RANK, prefer_likely_drafts
from speech.granite.ctc import CtcHypothesis, read
from speech.granite.drafter import CtcDrafter, DrafterBinding

pytestmark = pytest.mark.engine

END = 1


class Letters:
    """A tokenizer with a token a letter."""

    all_special_ids = (END,)
    eos_token_id = END

    def get_vocab(self) -> dict[str, int]:
        return {chr(code): code for code in range(32, 128)} | {"<|end|>": END}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(token) for token in tokens if token != END)


class Runner:
    """The parts of vLLM's model runner that the drafter reads."""

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(req_ids=[])
        self.requests: dict[str, Any] = {}
        self.encoder_cache: dict[str, torch.Tensor] = {}
        self.hypotheses: dict[torch.Tensor, CtcHypothesis] = {}
        self.rejection_sampler: Any = SimpleNamespace(sampler=SimpleNamespace(logprobs_mode="raw_logprobs"))
        self.reading_prompts: set[str] = set()
        self.max_model_len = 100
        self.device = torch.device("cpu")
        self.drafter: Any = None

    def get_model(self) -> Any:
        return SimpleNamespace(enable_ctc=lambda: self.hypotheses)

    def push(self, clip: str, text: str, max_entropy: float = 1.0) -> None:
        embeddings = self.encoder_cache[clip] = torch.zeros(2, 3)
        spelled = labels(text)
        self.hypotheses[embeddings] = CtcHypothesis(spelled, torch.linspace(0, max_entropy, len(spelled)))

    def begin(self, request: str, clip: str, draft: Any = "ctc", **asked: Any) -> None:
        self.requests[request] = SimpleNamespace(
            sampling_params=SimpleNamespace(extra_args={"draft": draft} | asked),
            mm_features=[SimpleNamespace(identifier=clip)],
            num_prompt_tokens=20,
            output_token_ids=[],
        )
        self.input_batch.req_ids.append(request)

    def end(self, request: str) -> None:
        del self.requests[request]
        self.input_batch.req_ids.remove(request)

    @property
    def discard_request_mask(self) -> Any:
        """Rows whose prompts are not read to their end."""
        return SimpleNamespace(np=np.array([name in self.reading_prompts for name in self.input_batch.req_ids]))

    def _sample(self, logits: torch.Tensor, metadata: object) -> SamplerOutput:
        """As vLLM samples where no row has a draft."""
        logprobs = logits.log_softmax(-1)
        chosen = logits.argmax(-1, keepdim=True)
        ranks = torch.ones(len(logits), dtype=torch.int64)
        return SamplerOutput(chosen.int(), LogprobsTensors(chosen.int(), logprobs.gather(1, chosen), ranks))

    def write(self, **shares: dict[str, float]) -> dict[str, list[tuple[str, float, int]]]:
        """A step without drafts, given what each row's model thinks: letters, their log-probabilities and ranks."""
        logits = torch.full((len(self.input_batch.req_ids), 128), -30.0)
        for row, name in enumerate(self.input_batch.req_ids):
            for letter, share in shares[name].items():
                logits[row, ord(letter)] = math.log(share)
        sampled = self._sample(logits, None)
        rows, width = sampled.sampled_token_ids.shape
        tensors = sampled.logprobs_tensors
        assert tensors is not None
        assert len(tensors.logprobs) == rows * width
        written = {}
        for row, name in enumerate(self.input_batch.req_ids):
            lines = [
                (row * width + place, token) for place, token in enumerate(sampled.sampled_token_ids[row].tolist())
            ]
            lines = [(line, token) for line, token in lines if token >= 0]
            assert [int(tensors.logprob_token_ids[line, 0]) for line, _ in lines] == [token for _, token in lines]
            written[name] = [
                (chr(token), round(float(tensors.logprobs[line, 0]), 3), int(tensors.selected_token_ranks[line]))
                for line, token in lines
            ]
        return written

    def step(self, **written: str) -> dict[str, str]:
        """What is proposed after a step in which these requests were given these letters."""
        rows = [[ord(letter) for letter in written.get(request, "")] for request in self.input_batch.req_ids]
        for request, tokens in zip(self.input_batch.req_ids, rows, strict=True):
            self.requests[request].output_token_ids += tokens
        proposed = self.drafter.propose(rows, None, None)
        return {
            request: "".join(map(chr, tokens))
            for request, tokens in zip(self.input_batch.req_ids, proposed, strict=True)
        }


def labels(text: str) -> torch.Tensor:
    """Frames that spell a text: every letter twice, a blank after it."""
    return torch.tensor([label for letter in text for label in (ord(letter), ord(letter), 0)])


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(drafter_module, "cached_tokenizer_from_config", lambda config: Letters())
    runner = Runner()
    speculation = SimpleNamespace(num_speculative_tokens=4)
    runner.drafter = CtcDrafter(SimpleNamespace(speculative_config=speculation, model_config=None))
    binding = DrafterBinding()
    binding.model_runner = runner
    binding.bind_drafter(adaptive=False, relaxed=False)
    return runner


def test_frames_become_text() -> None:
    def text(labels: torch.Tensor) -> str:
        return CtcHypothesis(labels, torch.zeros(len(labels))).text

    assert text(labels("hello  there")) == "hello there"
    assert text(torch.tensor([0, 32, 104, 104, 0, 105, 0, 0, 32, 0])) == "hi"
    assert text(torch.zeros(5, dtype=torch.int64)) == ""


def test_a_clip_of_a_batch_is_read_to_its_own_end() -> None:
    logits = torch.full((2, 6, 128), -20.0)
    for row, text in enumerate(("ab", "cd")):
        logits[row, torch.arange(6), labels(text)] = 20.0
    logits[1, 3:] = 0.0  # past the second clip's end: anything
    whole, cut = read(logits, [6, 3])
    assert (whole.text, cut.text) == ("ab", "c")
    assert whole.max_entropy < 1e-6
    assert cut.max_entropy < 1e-6
    assert read(logits, [6, 6])[1].max_entropy == pytest.approx(np.log(128))


def test_every_request_gets_the_draft_of_its_own_clip(runner: Runner) -> None:
    runner.push("one", "abcdefgh")
    runner.push("two", "tuvwxyz")
    runner.begin("a", "one")
    runner.begin("b", "two")
    assert runner.step(a="a", b="t") == {"a": "bcde", "b": "uvwx"}
    runner.input_batch.req_ids.reverse()  # vLLM moves rows as it likes
    assert runner.step(a="bcdef", b="uX") == {"a": "gh", "b": "wxyz"}


def test_a_draft_is_taken_before_the_encoder_cache_lets_it_go(runner: Runner) -> None:
    runner.begin("a", "one")
    assert runner.step() == {"a": ""}  # the prompt's first part: the encoder has not run
    runner.push("one", "abcdefgh")
    assert runner.step() == {"a": ""}
    runner.encoder_cache.clear()
    runner.hypotheses.clear()
    assert runner.step(a="a") == {"a": "bcde"}


def test_a_clip_that_the_encoder_remembers_is_drafted_for_again(runner: Runner) -> None:
    runner.push("one", "abcdefgh")
    for request in "ab":
        runner.begin(request, "one")
        assert runner.step(**{request: "a"})[request] == "bcde"


def test_without_a_reading_or_a_wish_there_is_no_draft(runner: Runner) -> None:
    runner.push("one", "abcdefgh")
    runner.begin("unheard", "none")
    runner.begin("unwished", "one", draft=None)
    runner.begin("given", "one", draft=[ord("x"), ord("y")])
    assert runner.step(unheard="a", unwished="a", given="x") == {"unheard": "", "unwished": "", "given": "y"}


def test_tokens_written_in_a_step_that_asked_for_no_draft_are_followed(runner: Runner) -> None:
    runner.push("one", "abcdefgh")
    runner.begin("a", "one")
    runner.step(a="a")
    runner.requests["a"].output_token_ids += [ord("b"), ord("c")]
    assert runner.step(a="d") == {"a": "efgh"}


def test_no_more_drafts_are_held_than_there_are_requests(runner: Runner) -> None:
    for number in range(50):
        runner.push(f"clip{number}", "abcdefgh")
        runner.begin(f"r{number}", f"clip{number}")
        runner.step(**{f"r{number}": "a"})
        assert runner.drafter._states.keys() == runner.requests.keys()
        if number >= 3:
            runner.end(f"r{number - 3}")


def test_a_word_that_was_never_written_gives_way_to_one_like_it(runner: Runner) -> None:
    runner.push("first", "good afternon")
    runner.begin("a", "first")
    assert runner.step(a="good ")["a"] == "afte"
    runner.step(a="afternoon")
    runner.begin("b", "first", draft=None)
    runner.end("a")
    runner.step(b="x")  # a is seen to have ended
    runner.push("second", "afternon")
    runner.begin("c", "second")
    assert runner.step(c="aftern")["c"] == "oon"


def test_what_ctc_answers_itself_is_as_it_reads_it(fast: Runner) -> None:
    fast.drafter._corrector.learn(["afternoon"])
    fast.push("sure", "afternon", max_entropy=0.5)
    fast.begin("sure", "sure", accept=[0.7, 0.2])
    assert "".join(letter for letter, *_ in fast.write(sure={"x": 1.0})["sure"]) == "afternon" + chr(END)


def test_an_unbound_drafter_proposes_nothing(runner: Runner) -> None:
    unbound = CtcDrafter(
        SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=4), model_config=None)
    )
    assert unbound.propose([[1], [2]], None, None) == [[], []]


@pytest.fixture
def fast(runner: Runner) -> Runner:
    """With the fast mode's three steps."""
    binding = DrafterBinding()
    binding.model_runner = runner
    binding.bind_drafter(adaptive=False, relaxed=True)
    return runner


def test_what_ctc_is_sure_of_is_the_answer_at_once(fast: Runner) -> None:
    fast.push("sure", "abcd", max_entropy=0.5)
    fast.begin("exact", "sure")
    fast.begin("sure", "sure", accept=[0.7, 0.2])
    fast.begin("partly", "sure", accept=[0.7, 0.2])
    fast.reading_prompts = {"partly"}
    written = fast.write(exact={"x": 1.0}, sure={"x": 1.0}, partly={"y": 1.0})
    assert written["exact"] == [("x", 0.0, 1)]
    assert written["partly"] == [("y", 0.0, 1)]  # which vLLM throws away: its prompt is not read to the end
    assert written["sure"] == [(letter, 0.0, UNVERIFIED_RANK) for letter in ("a", "b", "c", "d", chr(END))]
    assert fast.step(exact="x", sure="abcd" + chr(END), partly="")["sure"] == ""


def test_of_the_rest_what_is_likely_is_taken_up_to_the_first_that_is_not(fast: Runner) -> None:
    fast.push("unsure", "abcdefghij", max_entropy=0.9)
    fast.begin("exact", "unsure")
    fast.begin("fast", "unsure", accept=[0.7, 0.2])
    likely, unlikely = {"x": 0.7, "a": 0.3}, {"x": 0.9, "f": 0.1}
    first = fast.write(exact=likely, fast=likely)
    assert first == {"exact": [("x", round(math.log(0.7), 3), 1)], "fast": [("a", round(math.log(0.3), 3), 2)]}
    assert fast.step(exact="a", fast="a")["fast"] == "bcde"
    assert [one.min_prob for one in fast.drafter._windows()] == [0.2]
    # Of the four it was given one, say, for vLLM may cut drafts; the next is verified where the model goes on.
    assert fast.step(exact="b", fast="b")["fast"] == "cdef"
    assert fast.step(exact="cde", fast="cde")["fast"] == "fghi"
    assert fast.write(exact=unlikely, fast=unlikely)["fast"] == [("x", round(math.log(0.9), 3), 1)]
    assert fast.step(exact="x", fast="x")["fast"] != ""
    assert fast.drafter._windows() == []  # exactly, from here on


def test_the_end_is_a_token_of_the_draft(fast: Runner) -> None:
    fast.push("unsure", "ab", max_entropy=0.9)
    fast.begin("fast", "unsure", accept=[0.7, 0.2])
    assert fast.write(fast={"a": 1.0})["fast"][0][0] == "a"
    assert fast.step(fast="a") == {"fast": "b" + chr(END)}


def test_likely_drafts_become_the_first_choice_and_nothing_else_changes() -> None:
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.6, 0.3, 0.1]])
    drafted = torch.tensor([1, 2, 1, 1], dtype=torch.int32)
    logits = shares.log()
    relaxed = prefer_likely_drafts(logits.clone(), drafted, {0: 0.2, 2: 0.0, 3: 0.2}, [2, 1, 0, 1])
    assert relaxed.argmax(-1).tolist() == [1, 0, 0, 1]
    assert prefer_likely_drafts(logits.clone(), drafted, {1: 0.0}, [2, 2]).argmax(-1).tolist() == [0, 0, 1, 1]
    assert torch.equal(relaxed[relaxed.isfinite()], logits[relaxed.isfinite()])
    assert prefer_likely_drafts(logits, drafted, {1: 0.2}, [4, 0]) is logits
