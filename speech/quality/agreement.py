"""Agreement of a text with the CTC hypothesis of the same audio: which words were heard, and which were left out.

The language model of Granite Speech may write fluent words that nobody said, with high probability. The CTC head of its
encoder (``speech.granite.ctc``) reads the same audio a frame at a time and has no language model to invent with. It
spells badly and puts spaces anywhere (``i live at fiftye ight station rod``), so the two texts are aligned by
characters, without spaces, case and punctuation, and a word counts as heard where enough of its characters were.

Nothing here knows a language. A written number (``23``) cannot be spelled out, so it is heard if the hypothesis has
words in its place that belong to nothing else. Scripts without spaces between words are compared by character.

The texts must be in one language and one script: no translations, and no Japanese of Granite Speech, whose CTC labels
are phonetic (``speech.granite.ctc``).
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from rapidfuzz.distance import Levenshtein

from speech.transcript import Agreement

# Chosen by ``bench.flags`` on one half of its segments, of the demo model, whose CTC head has a WER of 19 % on calls:
# not_heard has 91 % of what it should find, and 7 false alarms an hour of calls.
#
# Fewer equal characters in a row are a coincidence: unrelated texts, too, have letters in the same order. With 2 it has
# 86 %, and 3 false alarms; with 4 no more, and 20.
MIN_EQUAL_CHARS = 3
# A word is heard if this share of its characters is: CTC spells by sound. With a half no more, and 11 false alarms.
MIN_HEARD_SHARE = 0.34
# So many words in a row without a counterpart are a passage; fewer are words that one of the two has misheard. With 2
# it has 97 %, and 44 false alarms; with 4 it has 78 %, and 3.
PASSAGE_WORDS = 3
# In scripts without spaces so many characters count as one word. Not measured: the demo model has no such language.
UNSPACED_CHARS_PER_WORD = 2
# A character of a written number stands for no more characters of a spoken one: 97 is quatre-vingt-dix-sept, 9 a digit.
SPOKEN_CHARS_PER_DIGIT = 12

# Han, Hiragana and Katakana, one by one; of anything else, what stands between spaces.
_UNSPACED = r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True)
class _Unit:
    """A word, or a character of a script without spaces.

    Attributes:
        start, end: its place in the text.
        key: the characters of it that are compared.
        is_number: whether it has digits, which stand for words.
    """

    start: int
    end: int
    key: str

    @property
    def is_number(self) -> bool:
        return any(character.isdecimal() for character in self.key)


class _Side:
    """One of the two texts: its units, and which of their characters the other text has.

    Args:
        text: as written.
        with_numbers: whether written numbers are compared as they are; if not they are left out of the characters.
    """

    def __init__(self, text: str, with_numbers: bool) -> None:
        self.text = text
        self.units = list(_units(text))
        self.keys = ["" if unit.is_number and not with_numbers else unit.key for unit in self.units]
        self.starts = [0, *accumulate(map(len, self.keys))]  # of each unit in the characters, and the end
        self.characters = "".join(self.keys)
        self.heard = bytearray(len(self.characters))  # 1: the other text has it
        self.heard_numbers: set[int] = set()  # indices of units

    def is_heard(self, index: int) -> bool:
        """Whether the other text has enough of a unit."""
        if not self.keys[index]:
            return index in self.heard_numbers
        heard = sum(self.heard[self.starts[index] : self.starts[index + 1]])
        return heard >= MIN_HEARD_SHARE * len(self.keys[index])

    def unheard_share(self) -> float:
        """The share of units that the other text lacks; 0 without units."""
        return sum(not self.is_heard(index) for index in range(len(self.units))) / max(len(self.units), 1)

    def passages(self, min_words: float) -> Iterator[str]:
        """What the other text lacks, where it is so many words in a row."""
        for is_heard, indices in groupby(range(len(self.units)), key=self.is_heard):
            passage = [self.units[index] for index in indices]
            if not is_heard and sum(map(_words, passage)) >= min_words:
                yield self.text[passage[0].start : passage[-1].end]


def agreement(text: str, hypothesis: str) -> Agreement:
    """Compares a model's text with the CTC hypothesis of the same audio.

    Args:
        text: the words of the model, without tags (``speech.models.tags``).
        hypothesis: of CTC.
    """
    read = _Side(hypothesis, with_numbers=True)
    written = _Side(text, with_numbers=any(unit.is_number for unit in read.units))
    blocks = _equal_blocks(written.characters, read.characters)
    for start, other_start, size in blocks:
        written.heard[start : start + size] = read.heard[other_start : other_start + size] = b"\1" * size
    _hear_numbers(written, read, blocks)
    return Agreement(
        not_heard_share=round(written.unheard_share(), 3),
        # Where CTC has read nothing, a single word is suspicious.
        not_heard=tuple(written.passages(PASSAGE_WORDS if read.units else 0)),
        left_out_share=round(read.unheard_share(), 3),
        left_out=tuple(read.passages(PASSAGE_WORDS)),
    )


def agreement_flags(agreement: Agreement) -> tuple[str, ...]:
    """Any of ``not_heard`` and ``left_out``."""
    raised = {"not_heard": agreement.not_heard, "left_out": agreement.left_out}
    return tuple(name for name, passages in raised.items() if passages)


def _units(text: str) -> Iterator[_Unit]:
    for match in _UNIT.finditer(text):
        folded = unicodedata.normalize("NFKC", match.group()).casefold()
        if key := "".join(character for character in folded if character.isalnum()):
            yield _Unit(match.start(), match.end(), key)


def _words(unit: _Unit) -> float:
    """How many words a unit counts as."""
    return 1 / UNSPACED_CHARS_PER_WORD if re.match(f"[{_UNSPACED}]", unit.key) else 1


def _equal_blocks(one: str, other: str) -> list[tuple[int, int, int]]:
    """Stretches that both texts have, in the order of both: start in each, and size."""
    return [
        (block.src_start, block.dest_start, block.src_end - block.src_start)
        for block in Levenshtein.opcodes(one, other)
        if block.tag == "equal" and block.src_end - block.src_start >= min(MIN_EQUAL_CHARS, len(one), len(other))
    ]


def _hear_numbers(written: _Side, read: _Side, blocks: Sequence[tuple[int, int, int]]) -> None:
    """Pairs written numbers with what stands in their place in the hypothesis and has no counterpart."""
    left_out = [index for index, key in enumerate(written.keys) if not key]
    for at, numbers in groupby(left_out, key=lambda index: written.starts[index]):
        indices = list(numbers)
        first = max((other + min(size, at - start) for start, other, size in blocks if start < at), default=0)
        last = min((other for start, other, _ in blocks if start >= at), default=len(read.characters))
        free = [place for place in range(first, last) if not read.heard[place]]
        if len(free) < MIN_EQUAL_CHARS:
            continue
        written.heard_numbers.update(indices)
        digits = sum(len(written.units[index].key) for index in indices)
        for place in free[: SPOKEN_CHARS_PER_DIGIT * digits]:
            read.heard[place] = 1
