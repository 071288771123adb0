"""The drafter with a fake model runner: each request gets its own draft, for as long as it should."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from speech.granite import drafter as drafter_module
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
        self.max_model_len = self.effective_drafter_max_model_len = 100
        self.device = torch.device("cpu")
        self.drafter: Any = None

    def add_request(self, request: str, draft: str | None) -> None:
        tokens = None if draft is None else [ord(character) for character in draft]
        self.requests[request] = CachedRequestState(
            req_id=request,
            prompt_token_ids=[0] * 20,
            mm_features=[],
            sampling_params=SamplingParams(extra_args={"draft": tokens}),
            generator=None,
            block_ids=(),
            num_computed_tokens=0,
            output_token_ids=[],
        )
        self.input_batch.req_ids.append(request)

    def finish_request(self, request: str) -> None:
        del self.requests[request]
        self.input_batch.req_ids.remove(request)

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


def bind(runner: FakeModelRunner) -> None:
    binding = DrafterBinding()
    binding.model_runner = runner
    assert binding.bind_drafter(adaptive=False)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> FakeModelRunner:
    monkeypatch.setattr(drafter_module, "cached_tokenizer_from_config", lambda config: CharacterTokenizer())
    runner = FakeModelRunner()
    runner.drafter = new_drafter()
    bind(runner)
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
