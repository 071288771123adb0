"""CTC hypotheses: their text, and the drafts made of them."""

import pytest
import torch
from torch.nn.functional import one_hot

from speech.granite.ctc import CtcHypothesis, decode
from speech.granite.drafts import Drafts

pytestmark = pytest.mark.engine


class CharacterTokenizer:
    """A token for each character: its code point."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(character) for character in text]


def labels_of(text: str) -> torch.Tensor:
    """CTC labels of a text: every character in two frames, a blank in the next."""
    return torch.tensor([label for character in text for label in (ord(character), ord(character), 0)])


def hypothesis(text: str) -> CtcHypothesis:
    return hypothesis_of(labels_of(text))


def hypothesis_of(labels: torch.Tensor) -> CtcHypothesis:
    [decoded] = decode(one_hot(labels, 128).float(), [len(labels)])
    return decoded


def text_of(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


def test_labels_of_frames_become_text() -> None:
    def text(labels: torch.Tensor) -> str:
        return hypothesis_of(labels).text

    assert text(labels_of("hello  there")) == "hello there"
    assert text(torch.tensor([0, 32, 104, 104, 0, 105, 0, 0, 32, 0])) == "hi"
    assert text(torch.zeros(5, dtype=torch.int64)) == ""


def test_clips_are_decoded_apart() -> None:
    logits = torch.full((9, 128), -20.0)
    logits[torch.arange(9), torch.cat([labels_of("ab"), labels_of("c")])] = 20.0
    first, second = decode(logits, [6, 3])
    assert (first.text, second.text) == ("ab", "c")


def test_an_unknown_word_is_replaced_by_a_similar_one_of_earlier_output() -> None:
    drafts = Drafts(CharacterTokenizer())
    assert text_of(drafts.extra_args(hypothesis("afternon"))["draft"]) == "afternon"
    drafts.learn("good afternoon")
    assert text_of(drafts.extra_args(hypothesis("afternon"))["draft"]) == "afternoon"
