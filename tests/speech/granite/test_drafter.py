"""The drafter with a fake model runner: each request gets its own draft, for as long as it should."""

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
from speech.granite.acceptance import prefer_likely_drafts
from speech.granite.drafter import CtcDrafter, DrafterBinding

pytestmark = pytest.mark.engine

EOS = 1


class CharacterTokenizer:
    """A token for each character: its code point."""

    all_special_ids = (EOS,)

    def get_vocab(self) -> dict[str, int]:
        return {chr(code): code for code in range(32, 128)} | {"<|end|>": EOS}


class FakeModelRunner:
    """The parts of vLLM's model runner that ``speech.granite.runner`` uses."""

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(req_ids=[])
        self.requests: dict[str, CachedRequestState] = {}
        self.rejection_sampler = RejectionSampler(SimpleNamespace(logprobs_mode="raw_logprobs"))
        self.in_prefill: set[str] = set()
        self.max_model_len = self.effective_drafter_max_model_len = 100
        self.device = torch.device("cpu")
        self.drafter: Any = None

    def add_request(self, request: str, draft: str | None, accept: float | None = None) -> None:
        tokens = None if draft is None else [ord(character) for character in draft]
        self.requests[request] = CachedRequestState(
            req_id=request,
            prompt_token_ids=[0] * 20,
            mm_features=[],
            sampling_params=SamplingParams(extra_args={"draft": tokens, "accept": accept}),
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
    """With relaxed acceptance."""
    bind(runner, relaxed=True)
    return runner


def test_every_request_gets_its_own_draft(runner: FakeModelRunner) -> None:
    runner.add_request("a", "abcdefgh")
    runner.add_request("b", "tuvwxyz")
    assert runner.step(a="a", b="t") == {"a": "bcde", "b": "uvwx"}
    runner.input_batch.req_ids.reverse()  # vLLM moves rows as it likes
    assert runner.step(a="bcdef", b="uX") == {"a": "gh", "b": "wxyz"}


def test_nothing_is_proposed_before_the_prefill_is_done(runner: FakeModelRunner) -> None:
    runner.add_request("a", "abcdefgh")
    assert runner.step() == {"a": ""}
    assert runner.step(a="a") == {"a": "bcde"}


def test_a_request_that_brings_no_draft_has_none(runner: FakeModelRunner) -> None:
    runner.add_request("without", None)
    runner.add_request("empty", "")
    assert runner.step(without="a", empty="a") == {"without": "", "empty": ""}


def test_output_of_steps_without_a_call_advances_the_draft(runner: FakeModelRunner) -> None:
    runner.add_request("a", "abcdefgh")
    runner.step(a="a")
    runner.requests["a"].output_token_ids += [ord("b"), ord("c")]
    assert runner.step(a="d") == {"a": "efgh"}


def test_drafts_of_finished_requests_are_dropped(runner: FakeModelRunner) -> None:
    for number in range(50):
        runner.add_request(f"r{number}", "abcdefgh")
        runner.step(**{f"r{number}": "a"})
        assert runner.drafter._states.keys() == runner.requests.keys()
        if number >= 3:
            runner.finish_request(f"r{number - 3}")


def test_an_unbound_drafter_proposes_nothing(runner: FakeModelRunner) -> None:
    assert new_drafter().propose([[1], [2]], None, None) == [[], []]


def test_likely_tokens_of_drafts_are_accepted_up_to_the_first_that_is_not(relaxed: FakeModelRunner) -> None:
    relaxed.add_request("exact", "abcdefghij")
    relaxed.add_request("relaxed", "abcdefghij", accept=0.2)
    relaxed.add_request("prefill", "abcdefghij", accept=0.2)
    relaxed.in_prefill = {"prefill"}
    likely, unlikely = {"x": 0.7, "a": 0.3}, {"x": 0.9, "f": 0.1}
    first = relaxed.sample(exact=likely, relaxed=likely, prefill=likely)
    first_choice = [("x", round(math.log(0.7), 3), 1)]
    assert first == {
        "exact": first_choice,
        "relaxed": [("a", round(math.log(0.3), 3), 2)],
        "prefill": first_choice,  # which vLLM discards
    }
    relaxed.finish_request("prefill")
    assert relaxed.step(exact="a", relaxed="a")["relaxed"] == "bcde"
    assert [window.min_prob for window in relaxed.drafter._windows()] == [0.2]
    # Only one of the four was verified: vLLM may cut drafts. The draft resumes after it.
    assert relaxed.step(exact="b", relaxed="b")["relaxed"] == "cdef"
    assert relaxed.step(exact="cde", relaxed="cde")["relaxed"] == "fghi"
    assert relaxed.sample(exact=unlikely, relaxed=unlikely)["relaxed"] == [("x", round(math.log(0.9), 3), 1)]
    assert relaxed.step(exact="x", relaxed="x")["relaxed"] != ""
    assert relaxed.drafter._windows() == []  # exact verification from here on


def test_only_likely_draft_tokens_become_the_first_choice() -> None:
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.6, 0.3, 0.1]])
    draft_tokens = torch.tensor([1, 2, 1, 1], dtype=torch.int32)
    logits = probs.log()
    relaxed = prefer_likely_drafts(logits.clone(), draft_tokens, {0: 0.2, 2: 0.0, 3: 0.2}, [2, 1, 0, 1])
    assert relaxed.argmax(-1).tolist() == [1, 0, 0, 1]
    assert prefer_likely_drafts(logits.clone(), draft_tokens, {1: 0.0}, [2, 2]).argmax(-1).tolist() == [0, 0, 1, 1]
    assert torch.equal(relaxed[relaxed.isfinite()], logits[relaxed.isfinite()])
    assert prefer_likely_drafts(logits, draft_tokens, {1: 0.2}, [4, 0]) is logits
