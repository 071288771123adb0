"""Keeps a draft in step with what the language model writes instead.

A draft is proposed in slices; where the model disagrees it writes its own token, and the rest of the
draft has to be taken up again at the right place. Tokens are a poor measure of that place: one wrong
letter splits a word into other tokens (``spo|ilet`` and ``spoil|ed``). So the text since the last
agreement is aligned with the draft letter by letter (edit distance with a free end), which survives
substitutions, insertions and deletions, and the draft goes on from there, in the middle of one of
its tokens if need be.

Whatever comes out is only a guess that the model then verifies: a mistake here costs a step, never a
word. Nothing here knows vLLM.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Protocol

# Letters of the draft, past as many as the model has written, among which it may go on: a skipped
# word or two. A wider window finds longer gaps and costs more at every disagreement.
SKIPPED_LETTERS = 24
# After so many letters without a settled agreement the two are telling different stories, and the best
# guess is taken as it is: aligning a longer text would cost more than drafts can save.
DOUBTFUL_LETTERS = 48
# Agreement on so many letters is no accident: what went before it is settled.
SETTLED_LETTERS = 3


class Pieces(Protocol):
    """The letters of tokens: a tokenizer's vocabulary, in whatever alphabet it writes bytes and spaces."""

    def letters(self, token: int) -> str:
        """A token's letters."""

    def token(self, letters: str) -> int | None:
        """The token with exactly these letters, if there is one."""


class Draft:
    """One request's draft, and how far the model has come in it.

    Args:
        tokens: the whole draft.
        pieces: the tokenizer's vocabulary.
    """

    def __init__(self, tokens: Sequence[int], pieces: Pieces) -> None:
        self._tokens = list(tokens)
        self._pieces = pieces
        letters = [pieces.letters(token) for token in self._tokens]
        self._text = "".join(letters)
        self._starts = [0, *accumulate(map(len, letters))]  # of each token, and the end
        self._settled = 0  # letters of the draft up to here are accounted for
        self._doubtful = ""  # what the model has written since
        self._position = 0  # where the draft goes on
        self._proposed: list[int] = []

    def propose(self, limit: int) -> list[int]:
        """The next tokens of the draft, at most ``limit``; none at its end.

        ``follow`` comes before the next call.
        """
        index = bisect_right(self._starts, self._position) - 1
        rest = self._text[self._position : self._starts[index + 1]] if index < len(self._tokens) else ""
        if rest and self._position > self._starts[index]:  # within a token
            self._proposed = [*self._spelled(rest), *self._tokens[index + 1 : index + limit]][:limit]
        else:
            self._proposed = self._tokens[index : index + limit]
        return self._proposed

    def follow(self, written: Sequence[int]) -> tuple[int, bool]:
        """Takes note of tokens that the model has written since the last proposal.

        Returns:
            How many of them were as proposed, and whether the next one was refused.
        """
        agreed = 0
        while agreed < min(len(written), len(self._proposed)) and written[agreed] == self._proposed[agreed]:
            agreed += 1
        agreed_letters = self._letters(written[:agreed])
        if not self._doubtful or len(agreed_letters) >= SETTLED_LETTERS:
            self._settle(self._position + len(agreed_letters))
        else:
            self._doubtful += agreed_letters
        refused = agreed < min(len(written), len(self._proposed))
        self._proposed = []
        self._doubtful += self._letters(written[agreed:])
        if self._doubtful:
            window = self._text[self._settled : self._settled + len(self._doubtful) + SKIPPED_LETTERS]
            self._position = self._settled + _end_of(self._doubtful, window)
        if len(self._doubtful) > DOUBTFUL_LETTERS:
            self._settle(self._position)
        return agreed, refused

    def _settle(self, position: int) -> None:
        self._settled = self._position = position
        self._doubtful = ""

    def _letters(self, tokens: Iterable[int]) -> str:
        return "".join(map(self._pieces.letters, tokens))

    def _spelled(self, letters: str) -> list[int]:
        """Tokens for a part of a token: the longest first, none where a letter has no token."""
        tokens = []
        while letters:
            for size in range(len(letters), 0, -1):
                if (token := self._pieces.token(letters[:size])) is not None:
                    tokens.append(token)
                    letters = letters[size:]
                    break
            else:
                return []
        return tokens


def _end_of(written: str, window: str) -> int:
    """Where in ``window`` the text that ``written`` says in other letters is most likely to end.

    The end of the cheapest alignment (edit distance) of all of ``written`` with a start of ``window``.
    Among equals one that ends in a common letter is better than one that does not, and then the one
    that ends latest: a letter replaced is likelier than one too many.
    """
    costs = list(range(len(window) + 1))
    for row, letter in enumerate(written):
        before, costs[0] = costs[0], row + 1
        for column, other in enumerate(window, start=1):
            replaced = before + (letter != other)
            before = costs[column]
            costs[column] = min(replaced, before + 1, costs[column - 1] + 1)
    last = written[-1]

    def badness(end: int) -> tuple[int, bool, int]:
        return costs[end], end == 0 or window[end - 1] != last, -end

    return min(range(len(costs)), key=badness)
