"""Corrects the spelling of CTC hypotheses by the words that the language model has output so far.

A CTC head models characters and no words (``afternon``, ``pleae``); the language model spells correctly, and words of
one clip are likely in another. So a word of a draft that the model has never output is replaced by the most similar
one that it has. The draft stays a proposal that the model verifies: no word of one recording gets into the text of
another unless the model would have output it there anyway.

On the 133 clips of the demo's samples it saves 1 to 4 % of the decoding steps, in any order of the recordings
(bench/spelling.py), and 14 % where all words are known beforehand.
"""

from collections.abc import Iterable

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

# Shorter words differ from some other word by one character too often.
MIN_WORD_CHARS = 4
# One edit for so many characters (with one for two, words turn into unrelated ones and steps rise).
CHARS_PER_EDIT = 3
# Those used last; a search through so many takes about a millisecond.
MAX_WORDS = 10_000


class SpellingCorrector:
    """A vocabulary of words that the language model has output."""

    def __init__(self) -> None:
        self._words: dict[str, None] = {}  # in the order of their last use

    def learn(self, words: Iterable[str]) -> None:
        """Adds words; beyond ``MAX_WORDS`` the least recently used are dropped."""
        for word in words:
            self._words.pop(word, None)
            self._words[word] = None
        while len(self._words) > MAX_WORDS:
            del self._words[next(iter(self._words))]

    def correct(self, text: str) -> str:
        """A text with each unknown word replaced by the most similar known one, if one is similar enough."""
        return " ".join(map(self._correct_word, text.split()))

    def _correct_word(self, word: str) -> str:
        if len(word) < MIN_WORD_CHARS or word in self._words:
            return word
        nearest = process.extractOne(
            word, self._words.keys(), scorer=Levenshtein.distance, score_cutoff=len(word) // CHARS_PER_EDIT
        )
        return nearest[0] if nearest else word
