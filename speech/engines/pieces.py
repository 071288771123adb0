"""Words with their times from what an encoder wrote in each frame: the times of greedy decoding are its own."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from speech.transcript import Word

_SPACES = (" ", "▁")  # ▁: SentencePiece's


@dataclass(frozen=True)
class Piece:
    """A character or a part of a word, and where it was written.

    Attributes:
        first, last: frames.
        logprob: natural-log probability, in its best frame.
    """

    text: str
    first: int
    last: int
    logprob: float


def timed_words(pieces: Iterable[Piece], frame_s: float, lag_s: float = 0.0) -> tuple[Word, ...]:
    """Joins pieces into words, at spaces.

    Args:
        pieces: of a clip, in order; a space, at the start of a piece or alone, begins a word.
        frame_s: seconds of a frame.
        lag_s: by so much a word begins before the first frame of its first piece.

    Returns:
        Words without overlaps, in seconds from the start of the clip. ``ctc_score`` is the geometric mean of the
        pieces' probabilities.
    """
    words: list[Word] = []
    for group in _words(pieces):
        start_s = max(words[-1].end_s if words else 0.0, group[0].first * frame_s - lag_s)
        score = math.exp(sum(piece.logprob for piece in group) / len(group))
        text = "".join(piece.text for piece in group).lstrip("".join(_SPACES))
        words.append(Word(text, start_s, (group[-1].last + 1) * frame_s, ctc_score=score))
    return tuple(words)


def _words(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    word: list[Piece] = []
    for piece in pieces:
        if piece.text.startswith(_SPACES):
            if word:
                yield word
            word = []
        if piece.text not in _SPACES:
            word.append(piece)
    if word:
        yield word
