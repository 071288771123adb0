"""The drafter with a fake model runner: each request gets the draft of its own clip, for as long as it should."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from speech.granite import drafter as drafter_module
from speech.granite.acceptance import UNVERIFIED_RANK, prefer_likely_drafts
from speech.granite.ctc import CtcHypothesis, decode
from speech.granite.drafter import CtcDrafter, DrafterBinding

pytestmark = pytest.mark.engine

EOS = 1


class CharacterTokenizer:
    """A token for each character: its code point."""

    all_special_ids = (EOS,)
    eos_token_id = EOS

    def get_vocab(self) -> dict[str, int]:
        return {chr(code): code for code in range(32, 128)} | {"<|end|>": EOS}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(character) for character in text]

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(token) for token in tokens if token != EOS)


class FakeModelRunner:
    """The parts of vLLM's model runner that ``speech.granite.runner`` uses."""

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(req_ids=[])
        self.requests: dict[str, CachedRequestState] = {}
        self.encoder_cache: dict[str, torch.Tensor] = {}
        self.hypotheses: dict[torch.Tensor, CtcHypothesis] = {}
        self.rejection_sampler = RejectionSampler(SimpleNamespace(logprobs_mode="raw_logprobs"))
        self.in_prefill: set[str] = set()
        self.max_model_len = self.effective_drafter_max_model_len = 100
        self.device = torch.device("cpu")
        self.drafter: Any = None

    def get_model(self) -> Any:
        return SimpleNamespace(enable_ctc=lambda: self.hypotheses)

    def encode_clip(self, clip: str, text: str, max_entropy: float = 1.0) -> None:
        """Puts a clip into the encoder cache, with this CTC hypothesis."""
        embeddings = self.encoder_cache[clip] = torch.zeros(2, 3)
        labels = labels_of(text)
        self.hypotheses[embeddings] = CtcHypothesis(labels, torch.linspace(0, max_entropy, len(labels)))

    def add_request(self, request: str, clip: str, draft: Any = "ctc", **extra_args: Any) -> None:
        self.requests[request] = CachedRequestState(
            req_id=request,
            prompt_token_ids=[0] * 20,
            mm_features=[SimpleNamespace(identifier=clip)],
            sampling_params=SamplingParams(extra_args={"draft": draft} | extra_args),
            generator=None,
            block_ids=(),
            num_computed_tokens=0,
            output_token_ids=[],
        )
        self.input_batch.req_ids.append(request)

    def finish_request(self, request: str) -> None:
        del self.requests[request]
        self.input_batch.req_ids.remove(request)

    @property
    def discard_request_mask(self) -> Any:
        """True for the rows that are in prefill."""
        return SimpleNamespace(np=np.array([name in self.in_prefill for name in self.input_batch.req_ids]))

    def _sample(self, logits: torch.Tensor, spec_decode_metadata: object) -> SamplerOutput:
        """As vLLM samples where no row has a draft."""
        logprobs = logits.log_softmax(-1)
        chosen = logits.argmax(-1, keepdim=True)
        ranks = torch.ones(len(logits), dtype=torch.int64)
        return SamplerOutput(chosen.int(), LogprobsTensors(chosen.int(), logprobs.gather(1, chosen), ranks))

    def sample(self, **probs: dict[str, float]) -> dict[str, list[tuple[str, float, int]]]:
        """A step without drafts, by the probabilities of each row: characters, log-probabilities and ranks."""
        logits = torch.full((len(self.input_batch.req_ids), 128), -30.0)
        for row, name in enumerate(self.input_batch.req_ids):
            for character, prob in probs[name].items():
                logits[row, ord(character)] = math.log(prob)
        sampled = self._sample(logits, None)
        rows, width = sampled.sampled_token_ids.shape
        tensors = sampled.logprobs_tensors
        assert tensors is not None
        assert len(tensors.logprobs) == rows * width
        outputs = {}
        for row, name in enumerate(self.input_batch.req_ids):
            lines = [
                (row * width + column, token) for column, token in enumerate(sampled.sampled_token_ids[row].tolist())
            ]
            lines = [(line, token) for line, token in lines if token >= 0]
            assert [int(tensors.logprob_token_ids[line, 0]) for line, _ in lines] == [token for _, token in lines]
            outputs[name] = [
                (chr(token), round(float(tensors.logprobs[line, 0]), 3), int(tensors.selected_token_ranks[line]))
                for line, token in lines
            ]
        return outputs

    def step(self, **output: str) -> dict[str, str]:
        """The drafts proposed after a step with this output; a request without output is in prefill."""
        rows = [[ord(character) for character in output.get(request, "")] for request in self.input_batch.req_ids]
        for request, tokens in zip(self.input_batch.req_ids, rows, strict=True):
            self.requests[request].output_token_ids += tokens
        proposed = self.drafter.propose(rows, None, None)
        return {
            request: "".join(map(chr, tokens))
            for request, tokens in zip(self.input_batch.req_ids, proposed, strict=True)
        }


def labels_of(text: str) -> torch.Tensor:
    """CTC labels of a text: every character in two frames, a blank in the next."""
    return torch.tensor([label for character in text for label in (ord(character), ord(character), 0)])


def new_drafter() -> CtcDrafter:
    speculation = SimpleNamespace(num_speculative_tokens=4)
    return CtcDrafter(SimpleNamespace(speculative_config=speculation, model_config=None))


def bind(runner: FakeModelRunner, relaxed: bool) -> None:
    binding = DrafterBinding()
    binding.model_runner = runner
    assert binding.bind_drafter(adaptive=False, relaxed=relaxed)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> FakeModelRunner:
    monkeypatch.setattr(drafter_module, "cached_tokenizer_from_config", lambda config: CharacterTokenizer())
    runner = FakeModelRunner()
    runner.drafter = new_drafter()
    bind(runner, relaxed=False)
    return runner


@pytest.fixture
def relaxed(runner: FakeModelRunner) -> FakeModelRunner:
    """With the fast mode's three steps."""
    bind(runner, relaxed=True)
    return runner


def test_labels_of_frames_become_text() -> None:
    def text(labels: torch.Tensor) -> str:
        return CtcHypothesis(labels, torch.zeros(len(labels))).text

    assert text(labels_of("hello  there")) == "hello there"
    assert text(torch.tensor([0, 32, 104, 104, 0, 105, 0, 0, 32, 0])) == "hi"
    assert text(torch.zeros(5, dtype=torch.int64)) == ""


def test_padding_frames_are_not_decoded() -> None:
    logits = torch.full((2, 6, 128), -20.0)
    for row, text in enumerate(("ab", "cd")):
        logits[row, torch.arange(6), labels_of(text)] = 20.0
    logits[1, 3:] = 0.0  # padding of the second clip
    first, second = decode(logits, [6, 3])
    assert (first.text, second.text) == ("ab", "c")
    assert first.max_entropy < 1e-6
    assert second.max_entropy < 1e-6
    assert decode(logits, [6, 6])[1].max_entropy == pytest.approx(np.log(128))


def test_every_request_gets_the_draft_of_its_own_clip(runner: FakeModelRunner) -> None:
    runner.encode_clip("one", "abcdefgh")
    runner.encode_clip("two", "tuvwxyz")
    runner.add_request("a", "one")
    runner.add_request("b", "two")
    assert runner.step(a="a", b="t") == {"a": "bcde", "b": "uvwx"}
    runner.input_batch.req_ids.reverse()  # vLLM moves rows as it likes
    assert runner.step(a="bcdef", b="uX") == {"a": "gh", "b": "wxyz"}


def test_a_draft_is_made_before_the_encoder_cache_drops_the_clip(runner: FakeModelRunner) -> None:
    runner.add_request("a", "one")
    assert runner.step() == {"a": ""}  # the prompt's first chunk: the encoder has not run
    runner.encode_clip("one", "abcdefgh")
    assert runner.step() == {"a": ""}
    runner.encoder_cache.clear()
    runner.hypotheses.clear()
    assert runner.step(a="a") == {"a": "bcde"}


def test_a_cached_clip_is_drafted_for_again(runner: FakeModelRunner) -> None:
    runner.encode_clip("one", "abcdefgh")
    for request in "ab":
        runner.add_request(request, "one")
        assert runner.step(**{request: "a"})[request] == "bcde"


def test_a_request_without_hypothesis_or_draft_option_has_no_draft(runner: FakeModelRunner) -> None:
    runner.encode_clip("one", "abcdefgh")
    runner.add_request("not_encoded", "none")
    runner.add_request("not_asked", "one", draft=None)
    runner.add_request("given", "one", draft=[ord("x"), ord("y")])
    assert runner.step(not_encoded="a", not_asked="a", given="x") == {"not_encoded": "", "not_asked": "", "given": "y"}


def test_output_of_steps_without_a_call_advances_the_draft(runner: FakeModelRunner) -> None:
    runner.encode_clip("one", "abcdefgh")
    runner.add_request("a", "one")
    runner.step(a="a")
    runner.requests["a"].output_token_ids += [ord("b"), ord("c")]
    assert runner.step(a="d") == {"a": "efgh"}


def test_drafts_of_finished_requests_are_dropped(runner: FakeModelRunner) -> None:
    for number in range(50):
        runner.encode_clip(f"clip{number}", "abcdefgh")
        runner.add_request(f"r{number}", f"clip{number}")
        runner.step(**{f"r{number}": "a"})
        assert runner.drafter._states.keys() == runner.requests.keys()
        if number >= 3:
            runner.finish_request(f"r{number - 3}")


def test_an_unknown_word_is_replaced_by_a_similar_one_of_earlier_output(runner: FakeModelRunner) -> None:
    runner.encode_clip("first", "good afternon")
    runner.add_request("a", "first")
    assert runner.step(a="good ")["a"] == "afte"
    runner.step(a="afternoon")
    runner.add_request("b", "first", draft=None)
    runner.finish_request("a")
    runner.step(b="x")  # the drafter notices that a has finished
    runner.encode_clip("second", "afternon")
    runner.add_request("c", "second")
    assert runner.step(c="aftern")["c"] == "oon"


def test_an_accepted_hypothesis_is_not_corrected(relaxed: FakeModelRunner) -> None:
    relaxed.drafter._corrector.learn(["afternoon"])
    relaxed.encode_clip("confident", "afternon", max_entropy=0.5)
    relaxed.add_request("confident", "confident", accept=[0.7, 0.2])
    assert "".join(
        character for character, *_ in relaxed.sample(confident={"x": 1.0})["confident"]
    ) == "afternon" + chr(EOS)


def test_an_unbound_drafter_proposes_nothing(runner: FakeModelRunner) -> None:
    assert new_drafter().propose([[1], [2]], None, None) == [[], []]


def test_a_confident_hypothesis_is_the_text_in_one_step(relaxed: FakeModelRunner) -> None:
    relaxed.encode_clip("confident", "abcd", max_entropy=0.5)
    relaxed.add_request("exact", "confident")
    relaxed.add_request("confident", "confident", accept=[0.7, 0.2])
    relaxed.add_request("prefill", "confident", accept=[0.7, 0.2])
    relaxed.in_prefill = {"prefill"}
    outputs = relaxed.sample(exact={"x": 1.0}, confident={"x": 1.0}, prefill={"y": 1.0})
    assert outputs["exact"] == [("x", 0.0, 1)]
    assert outputs["prefill"] == [("y", 0.0, 1)]  # which vLLM discards: it is in prefill
    assert outputs["confident"] == [(character, 0.0, UNVERIFIED_RANK) for character in ("a", "b", "c", "d", chr(EOS))]
    assert relaxed.step(exact="x", confident="abcd" + chr(EOS), prefill="")["confident"] == ""


def test_likely_tokens_of_other_drafts_are_accepted_up_to_the_first_that_is_not(relaxed: FakeModelRunner) -> None:
    relaxed.encode_clip("unconfident", "abcdefghij", max_entropy=0.9)
    relaxed.add_request("exact", "unconfident")
    relaxed.add_request("relaxed", "unconfident", accept=[0.7, 0.2])
    likely, unlikely = {"x": 0.7, "a": 0.3}, {"x": 0.9, "f": 0.1}
    first = relaxed.sample(exact=likely, relaxed=likely)
    assert first == {"exact": [("x", round(math.log(0.7), 3), 1)], "relaxed": [("a", round(math.log(0.3), 3), 2)]}
    assert relaxed.step(exact="a", relaxed="a")["relaxed"] == "bcde"
    assert [window.min_prob for window in relaxed.drafter._windows()] == [0.2]
    # Only one of the four was verified: vLLM may cut drafts. The draft resumes after it.
    assert relaxed.step(exact="b", relaxed="b")["relaxed"] == "cdef"
    assert relaxed.step(exact="cde", relaxed="cde")["relaxed"] == "fghi"
    assert relaxed.sample(exact=unlikely, relaxed=unlikely)["relaxed"] == [("x", round(math.log(0.9), 3), 1)]
    assert relaxed.step(exact="x", relaxed="x")["relaxed"] != ""
    assert relaxed.drafter._windows() == []  # exact verification from here on


def test_the_end_of_text_is_a_token_of_the_draft(relaxed: FakeModelRunner) -> None:
    relaxed.encode_clip("unconfident", "ab", max_entropy=0.9)
    relaxed.add_request("relaxed", "unconfident", accept=[0.7, 0.2])
    assert relaxed.sample(relaxed={"a": 1.0})["relaxed"][0][0] == "a"
    assert relaxed.step(relaxed="a") == {"relaxed": "b" + chr(EOS)}


def test_only_likely_draft_tokens_become_the_first_choice() -> None:
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.6, 0.3, 0.1]])
    draft_tokens = torch.tensor([1, 2, 1, 1], dtype=torch.int32)
    logits = probs.log()
    relaxed = prefer_likely_drafts(logits.clone(), draft_tokens, {0: 0.2, 2: 0.0, 3: 0.2}, [2, 1, 0, 1])
    assert relaxed.argmax(-1).tolist() == [1, 0, 0, 1]
    assert prefer_likely_drafts(logits.clone(), draft_tokens, {1: 0.0}, [2, 2]).argmax(-1).tolist() == [0, 0, 1, 1]
    assert torch.equal(relaxed[relaxed.isfinite()], logits[relaxed.isfinite()])
    assert prefer_likely_drafts(logits, draft_tokens, {1: 0.2}, [4, 0]) is logits
