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

# After so many letters without a settled agreement the two are telling different stories, and the best
# guess is taken as it is: aligning a longer text would cost more than drafts can save.
DOUBTFUL_LETTERS = 48
# Letters of the draft, past as many as that, among which it may go on: a skipped word or two. A wider
# window finds longer gaps and costs more at every disagreement.
SKIPPED_LETTERS = 24
# Agreement on so many letters is no accident: what went before it is settled.
SETTLED_LETTERS = 3


class TokenLetters(Protocol):
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

    def __init__(self, tokens: Sequence[int], pieces: TokenLetters) -> None:
        self._tokens = list(tokens)
        self._pieces = pieces
        letters = [pieces.letters(token) for token in self._tokens]
        self._text = "".join(letters)
        self._starts = [0, *accumulate(map(len, letters))]  # of each token, and the end
        self._position = 0  # where the draft goes on
        self._divergence: Alignment | None = None  # of what the model has written since the last agreement
        self._proposed: list[int] = []

    def propose(self, limit: int) -> list[int]:
        """The next tokens of the draft, at most ``limit``; none at its end.

        ``advance`` comes before the next call.
        """
        index = bisect_right(self._starts, self._position) - 1
        rest = self._text[self._position : self._starts[index + 1]] if index < len(self._tokens) else ""
        if rest and self._position > self._starts[index]:  # within a token
            self._proposed = [*self._spelled(rest), *self._tokens[index + 1 : index + limit]][:limit]
        else:
            self._proposed = self._tokens[index : index + limit]
        return self._proposed

    def advance(self, written: Sequence[int]) -> tuple[int, bool]:
        """Takes note of tokens that the model has written since the last proposal.

        Returns:
            How many of them were as proposed, and whether the next one was refused.
        """
        agreed = 0
        while agreed < min(len(written), len(self._proposed)) and written[agreed] == self._proposed[agreed]:
            agreed += 1
        letters = self._letters(written[:agreed])
        if self._divergence is None or len(letters) >= SETTLED_LETTERS:
            self._position += len(letters)
            self._divergence, letters = None, ""
        rejected = agreed < min(len(written), len(self._proposed))
        self._proposed = []
        if letters := letters + self._letters(written[agreed:]):
            self._align(letters)
        return agreed, rejected

    def _align(self, letters: str) -> None:
        """Places letters that were not as proposed."""
        if self._divergence is None:
            window = self._text[self._position :][: DOUBTFUL_LETTERS + SKIPPED_LETTERS]
            self._divergence = Alignment(window, self._position)
        self._divergence.extend(letters)
        self._position = self._divergence.end()
        if self._divergence.written > DOUBTFUL_LETTERS:
            self._divergence = None

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


class Alignment:
    """The edit distances of a text, as it grows, to every start of a window of the draft.

    Args:
        window: letters of the draft.
        start: the place of the first of them.
    """

    def __init__(self, window: str, start: int) -> None:
        self.written = 0  # letters of the text
        self._window = window
        self._start = start
        self._costs = list(range(len(window) + 1))
        self._last = ""

    def extend(self, letters: str) -> None:
        """Adds letters to the text: a row of the table for each."""
        costs = self._costs
        for letter in letters:
            self.written += 1
            before, costs[0] = costs[0], self.written
            for column, other in enumerate(self._window, start=1):
                replaced = before + (letter != other)
                before = costs[column]
                costs[column] = min(replaced, before + 1, costs[column - 1] + 1)
        self._last = letters[-1]

    def end(self) -> int:
        """The place in the draft where what the text says in other letters is most likely to end.

        The end of the cheapest alignment of the whole text with a start of the window. Among equals one
        that ends in a common letter is better than one that does not, and then the one that ends latest: a
        letter replaced is likelier than one too many.
        """

        def badness(end: int) -> tuple[int, bool, int]:
            return self._costs[end], end == 0 or self._window[end - 1] != self._last, -end

        return self._start + min(range(len(self._costs)), key=badness)
