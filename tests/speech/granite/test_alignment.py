"""Drafts that stay in step with a model that writes something else."""

import random
import re

import pytest

from speech.granite.alignment import Draft

LETTERS = "abcdeghilnorst"


class Syllables:
    """Tokens of one to four letters over a small alphabet; a space begins a token, as in GPT-2's."""

    def __init__(self) -> None:
        singles = [*LETTERS, " "]
        doubles = [first + second for first in singles for second in LETTERS]
        self._letters = [*singles, *doubles, "the", " th", "ing", "spo", "ilet", "iled", " cat", " the"]
        self._tokens = {letters: token for token, letters in enumerate(self._letters)}

    def letters(self, token: int) -> str:
        return self._letters[token]

    def token(self, letters: str) -> int | None:
        return self._tokens.get(letters)

    def encode(self, *words: str) -> list[int]:
        return [self._tokens[word] for word in words]

    def tokenized(self, text: str) -> list[int]:
        """Word by word, the longest token first, as a tokenizer's merges mostly come out."""
        tokens = []
        for word in re.findall(" ?[^ ]+| +", text):
            while word:
                size = next(size for size in range(4, 0, -1) if word[:size] in self._tokens)
                tokens.append(self._tokens[word[:size]])
                word = word[size:]
        return tokens


SYLLABLES = Syllables()


def verified(draft: Draft, truth: list[int], limit: int = 8) -> tuple[list[int], int]:
    """What a model that wants ``truth`` writes when it verifies ``draft``, and in how many steps.

    As in vLLM: one token from the prompt; then per step the tokens of a slice up to the first wrong one,
    and one token of its own.
    """
    written, steps = truth[:1], 1
    draft.advance(truth[:1])
    while len(written) < len(truth):
        proposed = draft.propose(limit)
        assert len(proposed) <= limit
        agreed = 0
        while agreed < len(proposed) and len(written) + agreed < len(truth) - 1:
            if proposed[agreed] != truth[len(written) + agreed]:
                break
            agreed += 1
        step = truth[len(written) : len(written) + agreed + 1]
        assert draft.advance(step)[0] >= agreed
        written = written + step
        steps += 1
    return written, steps


def steps_of(drafted: str, truth: str) -> int:
    return verified(Draft(SYLLABLES.tokenized(drafted), SYLLABLES), SYLLABLES.tokenized(truth))[1]


def test_a_right_draft_is_proposed_in_slices_from_the_first_token_on() -> None:
    draft = Draft(range(10), SYLLABLES)
    assert draft.advance([0]) == (0, False)
    assert draft.propose(4) == [1, 2, 3, 4]
    assert draft.advance([1, 2, 3, 4, 5]) == (4, False)
    assert draft.propose(4) == [6, 7, 8, 9]
    assert draft.advance([6, 7, 8, 9, 100]) == (4, False)
    assert draft.propose(4) == []


def test_a_refused_token_is_told_from_one_beyond_the_slice() -> None:
    draft = Draft(range(10), SYLLABLES)
    draft.advance([0])
    draft.propose(4)
    assert draft.advance([1, 2, 13]) == (2, True)


@pytest.mark.parametrize(
    ("drafted", "truth"),
    [
        ("the cat is on the line there and there", "the cat is in the line there and there"),  # substitution
        ("the cat is on the line there and there", "the cat is on a line there and there"),
        ("the cat is on line there and there again", "the cat is on the line there and there again"),  # insertion
        ("the cat is on the the line there and there", "the cat is on the line there and there"),  # deletion
        ("the cat is there on a line and then", "the cat is on a line and then"),  # a word too many
        (" the cat is on the line", "the cat is on the line"),  # a space before the first word
        ("the cat is on the line", " the cat is on the line"),
    ],
)
def test_one_wrong_word_does_not_end_the_gain(drafted: str, truth: str) -> None:
    plain = len(SYLLABLES.tokenized(truth))
    right = steps_of(truth, truth)
    assert steps_of(drafted, truth) <= right + 4 < plain


def test_a_word_cut_into_other_tokens_is_passed_at_once() -> None:
    draft = Draft(SYLLABLES.encode("the", " ", "spo", "ilet", " cat"), SYLLABLES)
    draft.advance(SYLLABLES.encode("the"))
    assert draft.propose(8) == SYLLABLES.encode(" ", "spo", "ilet", " cat")
    draft.advance(SYLLABLES.encode(" ", "spo", "iled"))
    assert draft.propose(8) == SYLLABLES.encode(" cat")


def test_a_draft_goes_on_in_the_middle_of_a_token() -> None:
    draft = Draft(SYLLABLES.encode("the", " ", "spo", "ilet", " cat"), SYLLABLES)
    draft.advance(SYLLABLES.encode("the", " ", "spo", "i"))
    assert draft.propose(8) == SYLLABLES.encode("le", "t", " cat")
    assert draft.propose(2) == SYLLABLES.encode("le", "t")


def test_an_empty_draft_proposes_nothing() -> None:
    draft = Draft([], SYLLABLES)
    for token in range(20):
        draft.advance([token])
        assert draft.propose(8) == []


def test_any_draft_at_all_leaves_the_text_alone_and_costs_no_step() -> None:
    alphabet = LETTERS + " "
    for seed in range(400):
        rng = random.Random(seed)
        truth = SYLLABLES.tokenized("".join(rng.choices(alphabet, k=rng.randint(1, 120))))
        other = SYLLABLES.tokenized("".join(rng.choices(alphabet, k=rng.randint(0, 200))))
        draft = Draft(rng.choice([truth, other, other + truth, truth[3:] + other, truth[::-1]]), SYLLABLES)
        written, steps = verified(draft, truth, limit=rng.randint(1, 32))
        assert written == truth
        assert steps <= len(truth)


def test_slips_of_every_kind_cost_steps_in_proportion() -> None:
    def slipped(text: str, rng: random.Random) -> str:
        letters = []
        for letter in text:
            slip, other = rng.random() / 0.06, rng.choice(LETTERS + " ")
            letters.append(letter if slip > 1 else other + letter if slip > 0.7 else other if slip > 0.3 else "")
        return "".join(letters)

    plain = drafted = 0
    for seed in range(60):
        rng = random.Random(seed)
        text = " ".join("".join(rng.choices(LETTERS, k=rng.randint(2, 7))) for _ in range(20))
        truth = SYLLABLES.tokenized(text)
        plain += len(truth)
        drafted += verified(Draft(SYLLABLES.tokenized(slipped(text, rng)), SYLLABLES), truth, limit=32)[1]
    # Six slips in a hundred letters are a slip in ten tokens, and each costs a step or two.
    assert plain / drafted > 3.5
