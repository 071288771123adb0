"""Times of the words that a model wrote, by forced alignment with the encoder's CTC posteriors.

The likeliest path of a given text through the posteriors (Viterbi; Graves et al. 2006; Kürzinger et al. 2020, arXiv
2007.09127) says in which frames each of its characters was heard. Words that CTC cannot spell (written digits, a script
that it has no labels for) are aligned as one label of any sound: it spans what is heard between their neighbours, and
they divide that span by their characters.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch

from speech.granite.ctc import BLANK, CODE_POINTS

FRAME_S = 0.02  # the encoder's frames are two log-mel frames of 10 ms
# From the start of a word's first sound to the first frame of its first label, less a margin. On the demo checkpoint
# it is 66 ms (median; 41 to 99 for nine words of ten), and the last frame of the last label ends where the word does
# (bench/word_times.py).
LABEL_LAG_S = 0.04
# Of a blank frame in a run of words that CTC cannot spell: a pause of a second costs as much as a weak label.
BLANK_COST = 0.02

_SPACE = ord(" ")
_SPELLED = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


@dataclass(frozen=True)
class WordTime:
    """When a word was said, in seconds from the start of the clip.

    Attributes:
        score: geometric mean of the posteriors of its labels, each in its best frame, from 0 to 1; None for a word that
            CTC cannot spell, whose times are estimated from its neighbours'.
    """

    start_s: float
    end_s: float
    score: float | None = None


@dataclass(frozen=True)
class _Unit:
    """Words that are aligned as one: a single word, or a run of words that CTC cannot spell."""

    words: list[str]
    labels: list[int]  # none where there is no sound: punctuation by itself
    is_spelled: bool


@dataclass
class _Aligned:
    """The frames of one label."""

    first: int
    last: int
    log_prob: float  # in the best of them


def align_words(words: Sequence[str], log_posteriors: torch.Tensor) -> list[WordTime]:
    """Aligns words with what was heard.

    Args:
        words: of the clip, in order.
        log_posteriors: CTC posteriors of the clip, natural logarithm, shape (frames, labels), float32, on the CPU.

    Returns:
        The time of each word, in order and without overlaps. If they have more characters than the clip has frames,
        which nobody can have said, they divide the clip.
    """
    units = list(_units(words, any_sound=log_posteriors.shape[1]))
    targets: list[int] = []
    for unit in units:
        targets += [_SPACE, *unit.labels] if targets and unit.labels else unit.labels
    aligned = _align(targets, log_posteriors)
    if aligned is None:
        return list(_divided(words, 0.0, len(log_posteriors) * FRAME_S))
    times: list[WordTime] = []
    for unit, labels in zip(units, _of_units(units, aligned), strict=True):
        end_before = times[-1].end_s if times else 0.0
        if not labels:
            times.append(WordTime(end_before, end_before))
            continue
        start_s = max(end_before, labels[0].first * FRAME_S - LABEL_LAG_S)
        end_s = (labels[-1].last + 1) * FRAME_S
        if unit.is_spelled:
            score = math.exp(sum(label.log_prob for label in labels) / len(labels))
            times.append(WordTime(start_s, end_s, score))
        else:
            times += _divided(unit.words, start_s, end_s)
    return times


def _units(words: Sequence[str], any_sound: int) -> Iterator[_Unit]:
    """Groups words. ``any_sound``: the label of what CTC cannot spell."""
    for spelled, run in groupby(words, _can_spell):
        if spelled:
            yield from (_Unit([word], [ord(character) for character in _spelling(word)], True) for word in run)
        else:
            yield _Unit(list(run), [any_sound], False)


def _can_spell(word: str) -> bool:
    return not any(character.isdigit() or ord(character) >= CODE_POINTS for character in _spelling(word))


def _spelling(word: str) -> str:
    """The word as CTC would spell it: in lower case, without punctuation."""
    return " ".join(_SPELLED.findall(unicodedata.normalize("NFC", word).lower().replace("’", "'")))


def _align(targets: list[int], log_posteriors: torch.Tensor) -> list[_Aligned] | None:
    """The likeliest path of labels through the posteriors; None if it needs more frames than there are."""
    if len(targets) + sum(a == b for a, b in pairwise(targets)) > len(log_posteriors):
        return None
    if not targets:
        return []
    from torchaudio.functional import forced_align

    emission = torch.cat([log_posteriors, _log_any_sound(log_posteriors)[:, None]], dim=1)
    path, scores = forced_align(emission[None], torch.tensor([targets], dtype=torch.int32), blank=BLANK)
    aligned: list[_Aligned] = []
    before = BLANK
    for frame, (label, score) in enumerate(zip(path[0].tolist(), scores[0].tolist(), strict=True)):
        if label not in (BLANK, before):
            aligned.append(_Aligned(frame, frame, score))
        elif label != BLANK:
            aligned[-1].last = frame
            aligned[-1].log_prob = max(aligned[-1].log_prob, score)
        before = label
    return aligned


def _log_any_sound(log_posteriors: torch.Tensor) -> torch.Tensor:
    """The log-probability of the label of any sound in each frame, shape (frames,).

    Labels are peaks among blanks, so that it must cover blanks as well: at a small cost, by which it ends where only
    blanks follow.
    """
    blank = log_posteriors[:, BLANK]
    return torch.maximum(blank - BLANK_COST, torch.log1p(-blank.exp().clamp(max=1 - 1e-6)))


def _of_units(units: Sequence[_Unit], aligned: list[_Aligned]) -> Iterator[list[_Aligned]]:
    """The labels of each unit, without the spaces between units."""
    start = 0
    for unit in units:
        start += bool(start and unit.labels)
        yield aligned[start : start + len(unit.labels)]
        start += len(unit.labels)


def _divided(words: Sequence[str], start_s: float, end_s: float) -> Iterator[WordTime]:
    """Divides a span of time by the characters of the words in it."""
    characters = sum(map(len, words))
    for word in words:
        word_end_s = start_s + (end_s - start_s) * len(word) / characters
        yield WordTime(start_s, word_end_s)
        start_s, characters = word_end_s, characters - len(word)
