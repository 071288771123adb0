"""CTC hypotheses: their text, and what the engine makes of them."""

import numpy as np
import pytest
import torch

from speech.granite.ctc import CtcHypothesis, decode
from speech.granite.drafts import Drafts

pytestmark = pytest.mark.engine

EOS = 1


class CharacterTokenizer:
    """A token for each character: its code point."""

    eos_token_id = EOS

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(character) for character in text]


def labels_of(text: str) -> torch.Tensor:
    """CTC labels of a text: every character in two frames, a blank in the next."""
    return torch.tensor([label for character in text for label in (ord(character), ord(character), 0)])


def hypothesis(text: str, max_entropy: float = 1.0) -> CtcHypothesis:
    labels = labels_of(text)
    return CtcHypothesis(labels, torch.linspace(0, max_entropy, len(labels)))


def text_of(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


def test_labels_of_frames_become_text() -> None:
    def text(labels: torch.Tensor) -> str:
        return CtcHypothesis(labels, torch.zeros(len(labels))).text

    assert text(labels_of("hello  there")) == "hello there"
    assert text(torch.tensor([0, 32, 104, 104, 0, 105, 0, 0, 32, 0])) == "hi"
    assert text(torch.zeros(5, dtype=torch.int64)) == ""


def test_clips_are_decoded_apart() -> None:
    logits = torch.full((9, 128), -20.0)
    logits[torch.arange(9), torch.cat([labels_of("ab"), labels_of("c")])] = 20.0
    logits[8] = 0.0
    first, second = decode(logits, [6, 3])
    assert (first.text, second.text) == ("ab", "c")
    assert first.max_entropy < 1e-6
    assert second.max_entropy == pytest.approx(np.log(128))


def test_an_exact_draft_is_never_the_text() -> None:
    drafts = Drafts(CharacterTokenizer())
    assert drafts.accepted(hypothesis("abcd", max_entropy=0.0)) is None
    assert drafts.extra_args(hypothesis("abcd")) == {"draft": [ord(character) for character in "abcd"]}


def test_a_confident_hypothesis_is_the_text_and_another_a_relaxed_draft() -> None:
    drafts = Drafts(CharacterTokenizer(), 0.7, 0.2)
    assert drafts.accepted(hypothesis("abcd", max_entropy=0.5)) == [97, 98, 99, 100, EOS]
    assert drafts.accepted(hypothesis("abcd", max_entropy=0.9)) is None
    assert drafts.extra_args(hypothesis("abcd", max_entropy=0.9)) == {"draft": [97, 98, 99, 100, EOS], "accept": 0.2}


def test_an_unknown_word_is_replaced_by_a_similar_one_of_earlier_output() -> None:
    exact = Drafts(CharacterTokenizer())
    assert text_of(exact.extra_args(hypothesis("afternon"))["draft"]) == "afternon"
    exact.learn("good afternoon")
    assert text_of(exact.extra_args(hypothesis("afternon"))["draft"]) == "afternoon"


def test_what_may_be_accepted_is_not_corrected() -> None:
    relaxed = Drafts(CharacterTokenizer(), 0.7, 0.2)
    relaxed.learn("good afternoon")
    assert relaxed.accepted(hypothesis("afternon", max_entropy=0.5)) == [*map(ord, "afternon"), EOS]
    assert relaxed.extra_args(hypothesis("afternon"))["draft"] == [*map(ord, "afternon"), EOS]
