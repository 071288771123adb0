"""Keeps a draft aligned with the output of the language model where the two differ.

A draft is proposed in slices. Where the model rejects a draft token it emits its own, and the rest of the draft has
to resume at the right position. Tokens are a poor measure of that position: one wrong character splits a word into
other tokens (``spo|ilet`` and ``spoil|ed``). So the output since the last agreement is aligned with the draft
character by character (edit distance with a free end), which survives substitutions, insertions and deletions, and
the draft resumes from there, in the middle of one of its tokens if need be.

The result is a proposal that the model verifies: a wrong alignment costs a step and changes no text. Nothing here
depends on vLLM.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Protocol

# After so many characters without agreement the output no longer follows the draft, and the best alignment so far is
# final: aligning a longer text would cost more than drafts can save.
MAX_DIVERGENCE_CHARS = 48
# Characters of the draft, beyond as many as were output, among which it may resume: a skipped word or two. A wider
# window finds longer gaps and costs more at every rejection.
MAX_SKIP_CHARS = 24
# Agreement on so many characters is no coincidence: the alignment before it is final.
RESYNC_CHARS = 3


class TokenText(Protocol):
    """The text of tokens: a tokenizer's vocabulary, in whatever alphabet it encodes bytes and spaces."""

    def text_of(self, token: int) -> str:
        """A token's text."""

    def token_of(self, text: str) -> int | None:
        """The token with exactly this text, if there is one."""


class Draft:
    """One request's draft, and the position in it that the model's output has reached.

    Args:
        tokens: the whole draft.
        vocabulary: of the tokenizer.
    """

    def __init__(self, tokens: Sequence[int], vocabulary: TokenText) -> None:
        self._tokens = list(tokens)
        self._vocabulary = vocabulary
        texts = [vocabulary.text_of(token) for token in self._tokens]
        self._text = "".join(texts)
        self._starts = [0, *accumulate(map(len, texts))]  # of each token in the text, and the end
        self._position = 0  # in the text, where the draft resumes
        self._divergence: Alignment | None = None  # of the output since the last agreement
        self._proposed: list[int] = []

    def propose(self, limit: int) -> list[int]:
        """The next tokens of the draft, at most ``limit``; none at its end.

        Call ``advance`` before the next call.
        """
        index = bisect_right(self._starts, self._position) - 1
        rest = self._text[self._position : self._starts[index + 1]] if index < len(self._tokens) else ""
        if rest and self._position > self._starts[index]:  # within a token
            self._proposed = [*self._tokenized(rest), *self._tokens[index + 1 : index + limit]][:limit]
        else:
            self._proposed = self._tokens[index : index + limit]
        return self._proposed

    def advance(self, output: Sequence[int]) -> tuple[int, bool]:
        """Moves the position by tokens that the model has output since the last proposal.

        Returns:
            How many of them were as proposed, and whether the next one was rejected.
        """
        accepted = 0
        while accepted < min(len(output), len(self._proposed)) and output[accepted] == self._proposed[accepted]:
            accepted += 1
        text = self._text_of(output[:accepted])
        if self._divergence is None or len(text) >= RESYNC_CHARS:
            self._position += len(text)
            self._divergence, text = None, ""
        rejected = accepted < min(len(output), len(self._proposed))
        self._proposed = []
        if text := text + self._text_of(output[accepted:]):
            self._align(text)
        return accepted, rejected

    def _align(self, text: str) -> None:
        """Moves the position to the end of output that was not as proposed."""
        if self._divergence is None:
            window = self._text[self._position :][: MAX_DIVERGENCE_CHARS + MAX_SKIP_CHARS]
            self._divergence = Alignment(window, self._position)
        self._divergence.extend(text)
        self._position = self._divergence.end()
        if self._divergence.length > MAX_DIVERGENCE_CHARS:
            self._divergence = None

    def _text_of(self, tokens: Iterable[int]) -> str:
        return "".join(map(self._vocabulary.text_of, tokens))

    def _tokenized(self, text: str) -> list[int]:
        """Tokens for a part of a token: the longest first, none where a character has no token."""
        tokens = []
        while text:
            for size in range(len(text), 0, -1):
                if (token := self._vocabulary.token_of(text[:size])) is not None:
                    tokens.append(token)
                    text = text[size:]
                    break
            else:
                return []
        return tokens


class Alignment:
    """The edit distances of a text, as it grows, to every prefix of a window of the draft.

    Args:
        window: characters of the draft.
        start: position of the first of them in the draft.
    """

    def __init__(self, window: str, start: int) -> None:
        self.length = 0  # characters of the text so far
        self._window = window
        self._start = start
        self._costs = list(range(len(window) + 1))
        self._last = ""

    def extend(self, text: str) -> None:
        """Appends characters to the text: one row of the Levenshtein table for each."""
        costs = self._costs
        for character in text:
            self.length += 1
            diagonal, costs[0] = costs[0], self.length
            for column, other in enumerate(self._window, start=1):
                substitution = diagonal + (character != other)
                diagonal = costs[column]
                costs[column] = min(substitution, diagonal + 1, costs[column - 1] + 1)
        self._last = text[-1]

    def end(self) -> int:
        """The position in the draft at which the text so far most likely ends.

        The end of the cheapest alignment of the whole text with a prefix of the window. Among equals one
        that ends in a common character is preferred, and then the one that ends latest: a substitution is likelier
        than an insertion.
        """

        def rank(end: int) -> tuple[int, bool, int]:
            return self._costs[end], end == 0 or self._window[end - 1] != self._last, -end

        return self._start + min(range(len(self._costs)), key=rank)
