"""The drafter beside a stand-in for vLLM's model runner: whose draft it is, and for how long."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from speech.granite import drafter as drafter_module
from speech.granite.acceptance import prefer_likely
from speech.granite.ctc import Reading, read
from speech.granite.drafter import CtcDrafter, DrafterBinding

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


class Runner:
    """The parts of vLLM's model runner that the drafter reads."""

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(req_ids=[])
        self.requests: dict[str, Any] = {}
        self.encoder_cache: dict[str, torch.Tensor] = {}
        self.readings: dict[torch.Tensor, Reading] = {}
        self.rejection_sampler: Any = None
        self.max_model_len = 100
        self.device = torch.device("cpu")
        self.drafter: Any = None

    def get_model(self) -> Any:
        return SimpleNamespace(keep_readings=lambda: self.readings)

    def hear(self, clip: str, text: str, doubt: float = 1.0) -> None:
        embeddings = self.encoder_cache[clip] = torch.zeros(2, 3)
        spelled = labels(text)
        self.readings[embeddings] = Reading(spelled, torch.linspace(0, doubt, len(spelled)))

    def begin(self, request: str, clip: str, draft: Any = "ctc", **asked: Any) -> None:
        self.requests[request] = SimpleNamespace(
            sampling_params=SimpleNamespace(extra_args={"draft": draft} | asked),
            mm_features=[SimpleNamespace(identifier=clip)],
            output_token_ids=[],
        )
        self.input_batch.req_ids.append(request)

    def end(self, request: str) -> None:
        del self.requests[request]
        self.input_batch.req_ids.remove(request)

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
    runner.drafter = CtcDrafter(SimpleNamespace(speculative_config=speculation, model_config=None))  # type: ignore[arg-type]
    binding = DrafterBinding()
    binding.model_runner = runner
    binding.bind_drafter(adaptive=False, relaxed=False)
    return runner


def test_frames_become_text() -> None:
    def text(labels: torch.Tensor) -> str:
        return Reading(labels, torch.zeros(len(labels))).text

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
    assert whole.doubt < 1e-6
    assert cut.doubt < 1e-6
    assert read(logits, [6, 6])[1].doubt == pytest.approx(np.log(128))


def test_every_request_gets_the_draft_of_its_own_clip(runner: Runner) -> None:
    runner.hear("one", "abcdefgh")
    runner.hear("two", "tuvwxyz")
    runner.begin("a", "one")
    runner.begin("b", "two")
    assert runner.step(a="a", b="t") == {"a": "bcde", "b": "uvwx"}
    runner.input_batch.req_ids.reverse()  # vLLM moves rows as it likes
    assert runner.step(a="bcdef", b="uX") == {"a": "gh", "b": "wxyz"}


def test_a_draft_is_taken_before_the_encoder_cache_lets_it_go(runner: Runner) -> None:
    runner.begin("a", "one")
    assert runner.step() == {"a": ""}  # the prompt's first part: the encoder has not run
    runner.hear("one", "abcdefgh")
    assert runner.step() == {"a": ""}
    runner.encoder_cache.clear()
    runner.readings.clear()
    assert runner.step(a="a") == {"a": "bcde"}


def test_a_clip_that_the_encoder_remembers_is_drafted_for_again(runner: Runner) -> None:
    runner.hear("one", "abcdefgh")
    for request in "ab":
        runner.begin(request, "one")
        assert runner.step(**{request: "a"})[request] == "bcde"


def test_without_a_reading_or_a_wish_there_is_no_draft(runner: Runner) -> None:
    runner.hear("one", "abcdefgh")
    runner.begin("unheard", "none")
    runner.begin("unwished", "one", draft=None)
    runner.begin("given", "one", draft=[ord("x"), ord("y")])
    assert runner.step(unheard="a", unwished="a", given="x") == {"unheard": "", "unwished": "", "given": "y"}


def test_tokens_written_in_a_step_that_asked_for_no_draft_are_followed(runner: Runner) -> None:
    runner.hear("one", "abcdefgh")
    runner.begin("a", "one")
    runner.step(a="a")
    runner.requests["a"].output_token_ids += [ord("b"), ord("c")]
    assert runner.step(a="d") == {"a": "efgh"}


def test_no_more_drafts_are_held_than_there_are_requests(runner: Runner) -> None:
    for number in range(50):
        runner.hear(f"clip{number}", "abcdefgh")
        runner.begin(f"r{number}", f"clip{number}")
        runner.step(**{f"r{number}": "a"})
        assert len(runner.drafter._drafted) <= len(runner.requests)
        if number >= 3:
            runner.end(f"r{number - 3}")


def test_an_unbound_drafter_proposes_nothing(runner: Runner) -> None:
    unbound = CtcDrafter(
        SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=4), model_config=None)
    )  # type: ignore[arg-type]
    assert unbound.propose([[1], [2]], None, None) == [[], []]


def test_what_ctc_is_sure_of_is_taken_to_its_end_and_the_rest_where_it_is_likely(runner: Runner) -> None:
    runner.hear("sure", "abcd", doubt=0.5)
    runner.hear("unsure", "abcd", doubt=0.9)
    runner.begin("exact", "sure")
    runner.begin("sure", "sure", accept=[0.7, 0.2])
    runner.begin("unsure", "unsure", accept=[0.7, 0.2])
    proposed = runner.step(exact="a", sure="a", unsure="a")
    assert proposed == {"exact": "bcd", "sure": "bcd" + chr(END), "unsure": "bcd"}
    assert runner.drafter._least_probabilities() == [None, 0.0, 0.2]


def test_likely_drafts_become_the_first_choice_and_nothing_else_changes() -> None:
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.6, 0.3, 0.1]])
    drafted = torch.tensor([1, 2, 1, 1], dtype=torch.int32)
    logits = shares.log()
    relaxed = prefer_likely(logits.clone(), drafted, [0.2, None, 0.0, 0.2], [2, 1, 0, 1])
    assert relaxed.argmax(-1).tolist() == [1, 0, 0, 1]
    assert prefer_likely(logits.clone(), drafted, [None, 0.0], [2, 2]).argmax(-1).tolist() == [0, 0, 1, 1]
    assert torch.equal(relaxed[relaxed.isfinite()], logits[relaxed.isfinite()])
    assert prefer_likely(logits, drafted, [None, 0.2], [4, 0]) is logits
