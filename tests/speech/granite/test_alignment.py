"""Drafts stay aligned with an output that differs from them."""

import random
import re

import pytest

from speech.granite.alignment import Draft

ALPHABET = "abcdeghilnorst"


class Syllables:
    """A tokenizer: tokens of one to four characters over a small alphabet; spaces begin a token, as in GPT-2's."""

    def __init__(self) -> None:
        singles = [*ALPHABET, " "]
        doubles = [first + second for first in singles for second in ALPHABET]
        self._texts = [*singles, *doubles, "the", " th", "ing", "spo", "ilet", "iled", " cat", " the"]
        self._tokens = {text: token for token, text in enumerate(self._texts)}

    def text_of(self, token: int) -> str:
        return self._texts[token]

    def token_of(self, text: str) -> int | None:
        return self._tokens.get(text)

    def tokens(self, *texts: str) -> list[int]:
        return [self._tokens[text] for text in texts]

    def encode(self, text: str) -> list[int]:
        """Word by word, the longest token first, which is close to what BPE merges give."""
        tokens = []
        for word in re.findall(" ?[^ ]+| +", text):
            while word:
                size = next(size for size in range(4, 0, -1) if word[:size] in self._tokens)
                tokens.append(self._tokens[word[:size]])
                word = word[size:]
        return tokens


SYLLABLES = Syllables()


def decode(draft: Draft, target: list[int], limit: int = 8) -> tuple[list[int], int]:
    """The output of a model whose greedy output is ``target`` and that verifies ``draft``; and its steps.

    As in vLLM: one token from prefill; then in each step the accepted tokens of a slice, and one token of its own.
    """
    output, steps = target[:1], 1
    draft.advance(target[:1])
    while len(output) < len(target):
        proposed = draft.propose(limit)
        assert len(proposed) <= limit
        accepted = 0
        while accepted < len(proposed) and len(output) + accepted < len(target) - 1:
            if proposed[accepted] != target[len(output) + accepted]:
                break
            accepted += 1
        step = target[len(output) : len(output) + accepted + 1]
        assert draft.advance(step)[0] >= accepted
        output = output + step
        steps += 1
    return output, steps


def steps_of(drafted: str, target: str) -> int:
    return decode(Draft(SYLLABLES.encode(drafted), SYLLABLES), SYLLABLES.encode(target))[1]


def test_a_correct_draft_is_proposed_in_slices_from_the_first_token_on() -> None:
    draft = Draft(range(10), SYLLABLES)
    assert draft.advance([0]) == (0, False)
    assert draft.propose(4) == [1, 2, 3, 4]
    assert draft.advance([1, 2, 3, 4, 5]) == (4, False)
    assert draft.propose(4) == [6, 7, 8, 9]
    assert draft.advance([6, 7, 8, 9, 100]) == (4, False)
    assert draft.propose(4) == []


def test_a_rejected_token_is_distinguished_from_a_bonus_token() -> None:
    draft = Draft(range(10), SYLLABLES)
    draft.advance([0])
    draft.propose(4)
    assert draft.advance([1, 2, 13]) == (2, True)


@pytest.mark.parametrize(
    ("drafted", "target"),
    [
        ("the cat is on the line there and there", "the cat is in the line there and there"),  # substitution
        ("the cat is on the line there and there", "the cat is on a line there and there"),
        ("the cat is on line there and there again", "the cat is on the line there and there again"),  # insertion
        ("the cat is on the the line there and there", "the cat is on the line there and there"),  # deletion
        ("the cat is there on a line and then", "the cat is on a line and then"),  # an extra word
        (" the cat is on the line", "the cat is on the line"),  # a space before the first word
        ("the cat is on the line", " the cat is on the line"),
    ],
)
def test_one_wrong_word_costs_few_steps(drafted: str, target: str) -> None:
    without_draft = len(SYLLABLES.encode(target))
    with_correct_draft = steps_of(target, target)
    assert steps_of(drafted, target) <= with_correct_draft + 4 < without_draft


def test_a_draft_resumes_at_once_after_a_word_split_into_other_tokens() -> None:
    draft = Draft(SYLLABLES.tokens("the", " ", "spo", "ilet", " cat"), SYLLABLES)
    draft.advance(SYLLABLES.tokens("the"))
    assert draft.propose(8) == SYLLABLES.tokens(" ", "spo", "ilet", " cat")
    draft.advance(SYLLABLES.tokens(" ", "spo", "iled"))
    assert draft.propose(8) == SYLLABLES.tokens(" cat")


def test_a_draft_resumes_in_the_middle_of_a_token() -> None:
    draft = Draft(SYLLABLES.tokens("the", " ", "spo", "ilet", " cat"), SYLLABLES)
    draft.advance(SYLLABLES.tokens("the", " ", "spo", "i"))
    assert draft.propose(8) == SYLLABLES.tokens("le", "t", " cat")
    assert draft.propose(2) == SYLLABLES.tokens("le", "t")


def test_an_empty_draft_proposes_nothing() -> None:
    draft = Draft([], SYLLABLES)
    for token in range(20):
        draft.advance([token])
        assert draft.propose(8) == []


def test_no_draft_changes_the_text_or_adds_a_step() -> None:
    alphabet = ALPHABET + " "
    for seed in range(400):
        rng = random.Random(seed)
        target = SYLLABLES.encode("".join(rng.choices(alphabet, k=rng.randint(1, 120))))
        other = SYLLABLES.encode("".join(rng.choices(alphabet, k=rng.randint(0, 200))))
        draft = Draft(rng.choice([target, other, other + target, target[3:] + other, target[::-1]]), SYLLABLES)
        output, steps = decode(draft, target, limit=rng.randint(1, 32))
        assert output == target
        assert steps <= len(target)


def test_errors_of_every_kind_cost_steps_in_proportion() -> None:
    def with_errors(text: str, rng: random.Random) -> str:
        characters = []
        for right in text:
            kind, other = rng.random() / 0.06, rng.choice(ALPHABET + " ")
            characters.append(right if kind > 1 else other + right if kind > 0.7 else other if kind > 0.3 else "")
        return "".join(characters)

    plain = drafted = 0
    for seed in range(60):
        rng = random.Random(seed)
        text = " ".join("".join(rng.choices(ALPHABET, k=rng.randint(2, 7))) for _ in range(20))
        target = SYLLABLES.encode(text)
        plain += len(target)
        drafted += decode(Draft(SYLLABLES.encode(with_errors(text, rng)), SYLLABLES), target, limit=32)[1]
    # Six errors in a hundred characters are one in ten tokens, and each costs a step or two.
    assert plain / drafted > 3.5
