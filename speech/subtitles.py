"""Subtitle cues that can be read: two short lines, a few seconds, broken where the speaker pauses or a phrase ends.

The limits are those of broadcasters and streaming services (Netflix, "Timed Text Style Guide: General Requirements":
two lines of 42 characters, at most 7 seconds). Within a segment the cues are those of the least cost over all ways to
divide its words (dynamic programming, as Knuth and Plass break lines). A segment without word times is divided as if
all its characters took the same time.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from speech.recording import Options
from speech.transcript import Segment, Transcript, Word
from speech.words import UNSPACED_LANGUAGES, word_spans

LINES, LINE_WIDTH = 2, 42  # width in columns, of which a full-width character has two
MIN_S, MAX_S = 1.0, 7.0
MAX_SPEAKER_CHARS = 20  # full-width or not, and a colon: on one line
PAUSE_S = 0.4  # between words; a shorter one is articulation

# Costs of a division: of every cue, of the end of a cue by what is there, of a pause or the end of a sentence within a
# cue, and of a cue that is shown too briefly, a second.
_CUE = 1.0
_END_OF_SENTENCE, _END_AT_PAUSE, _END_OF_PHRASE, _END_WITHIN_PHRASE = 0.0, 0.2, 0.3, 1.5
_BREAK_WITHIN, _TOO_BRIEF = 1.5, 3.0
PHRASE_COLUMNS = 10  # by so many the wider line may be wider, if the first ends with a phrase

_SENTENCE_ENDS = (".", "?", "!", "。", "？", "！", "…")
_PHRASE_ENDS = (",", ";", ":", "、", "–", "—", *_SENTENCE_ENDS)


@dataclass(frozen=True)
class Cue:
    """What is shown from ``start_s`` to ``end_s``, in seconds from the start of the file.

    Attributes:
        speaker: empty if unnamed and there is one channel.
        lines: at most two.
    """

    start_s: float
    end_s: float
    channel: int
    speaker: str
    lines: tuple[str, ...]


def cues(transcript: Transcript, *, speaker_in_text: bool) -> list[Cue]:
    """The cues of a transcript, in the order of their start.

    Args:
        transcript: of one recording.
        speaker_in_text: whether the first line begins with the speaker and a colon.
    """
    multichannel = len({segment.channel for segment in transcript.segments}) > 1
    found: list[Cue] = []
    for segment in transcript.segments:
        speaker = one_line(segment.speaker or (f"Channel {segment.channel + 1}" if multichannel else ""))
        prefix = f"{speaker[:MAX_SPEAKER_CHARS]}: " if speaker and speaker_in_text else ""
        found += _segment_cues(segment, speaker, prefix, transcript.recording.options)
    return _shown_long_enough(sorted(found, key=lambda cue: (cue.start_s, cue.channel)))


def one_line(text: str) -> str:
    """Without line breaks and ``-->``: an empty line ends a cue, and ``-->`` marks its times."""
    return " ".join(text.replace("-->", "→").split())


def _segment_cues(segment: Segment, speaker: str, prefix: str, options: Options) -> Iterator[Cue]:
    language = options.target_language or options.language
    separator = "" if language in UNSPACED_LANGUAGES else " "
    words = list(_split_long(_timed(segment, language)))
    for first, last in _divide(words, _width(prefix), len(separator)):
        cue = words[first:last]
        lines = _lines([word.text for word in cue], prefix, separator)
        yield Cue(cue[0].start_s, cue[-1].end_s, segment.channel, speaker, lines)


def _timed(segment: Segment, language: str) -> list[Word]:
    """The words of a segment; without word times each takes time by its characters."""
    text = one_line(segment.text)
    spans = word_spans(text, language)
    if len(segment.words) == len(spans):
        return [replace(word, text=one_line(word.text)) for word in segment.words]
    scale = (segment.end_s - segment.start_s) / max(1, len(text))
    return [Word(text[a:b], segment.start_s + a * scale, segment.start_s + b * scale) for a, b in spans]


def _split_long(words: Sequence[Word]) -> Iterator[Word]:
    """Splits words that are longer than half a line."""
    size = LINE_WIDTH // 2
    for word in words:
        parts = [word.text[start : start + size] for start in range(0, len(word.text), size)]
        step = (word.end_s - word.start_s) / max(1, len(parts))
        for number, part in enumerate(parts):
            yield Word(part, word.start_s + number * step, word.start_s + (number + 1) * step)


def _divide(words: Sequence[Word], indent: int, space: int) -> list[tuple[int, int]]:
    """Ranges of words, a cue each, of the least total cost."""
    best: list[tuple[float, int]] = [(0.0, 0)]  # by how many words: the cost, and where the last cue begins
    for last in range(1, len(words) + 1):
        options = ((best[first][0] + _cost(words, first, last), first) for first in _starts(words, last, indent, space))
        best.append(min(options))
    ranges = []
    last = len(words)
    while last:
        ranges.append((best[last][1], last))
        last = best[last][1]
    return ranges[::-1]


def _starts(words: Sequence[Word], last: int, indent: int, space: int) -> Iterator[int]:
    """Where a cue that ends before word ``last`` may begin: nearest first, and a cue of one word always."""
    for first in range(last - 1, -1, -1):
        too_long = words[last - 1].end_s - words[first].start_s > MAX_S
        if first < last - 1 and (too_long or not _fits(words[first:last], indent, space)):
            return
        yield first


def _fits(words: Sequence[Word], indent: int, space: int) -> bool:
    """Whether words fit the lines of a cue, the first of which is indented."""
    line, width = 1, indent
    for index, word in enumerate(words):
        added = _width(word.text)
        if width + space * bool(index) + added <= LINE_WIDTH:
            width += space * bool(index) + added
        else:
            line, width = line + 1, added
    return line <= LINES


def _cost(words: Sequence[Word], first: int, last: int) -> float:
    """The cost of a cue of the words from ``first`` up to ``last``."""
    end, after = words[last - 1], words[last] if last < len(words) else None
    shown_s = (after.start_s if after else end.end_s + MIN_S) - words[first].start_s
    breaks = sum(_end_cost(a, b) <= _END_AT_PAUSE for a, b in pairwise(words[first:last]))
    return _CUE + _end_cost(end, after) + _BREAK_WITHIN * breaks + _TOO_BRIEF * max(0.0, MIN_S - shown_s)


def _end_cost(end: Word, after: Word | None) -> float:
    """The cost of ending a cue with a word, by what follows."""
    if after is None or end.text.endswith(_SENTENCE_ENDS):
        return _END_OF_SENTENCE
    if after.start_s - end.end_s >= PAUSE_S:
        return _END_AT_PAUSE
    return _END_OF_PHRASE if end.text.endswith(_PHRASE_ENDS) else _END_WITHIN_PHRASE


def _lines(words: Sequence[str], prefix: str, separator: str) -> tuple[str, ...]:
    """A cue's words on one line if they fit, else on two, by width and by phrase."""
    whole = prefix + separator.join(words)
    counts = range(0 if prefix else 1, len(words))  # of words on the first line
    if _width(whole) <= LINE_WIDTH or not counts:
        return (whole,)
    splits = [((prefix + separator.join(words[:count])).rstrip(), separator.join(words[count:])) for count in counts]

    def cost(split: tuple[str, str]) -> tuple[bool, int, int]:
        widest = max(map(_width, split))
        at_phrase = split[0].endswith(_PHRASE_ENDS)
        return widest > LINE_WIDTH, widest - PHRASE_COLUMNS * at_phrase, _width(split[0])

    return min(splits, key=cost)


def _width(text: str) -> int:
    """Columns of a text: a full-width character has two, a combining one none."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _shown_long_enough(found: list[Cue]) -> list[Cue]:
    """Cues shown for ``MIN_S``, or until the next of their channel, and no longer than ``MAX_S``."""
    next_start_s: dict[int, float] = {}
    shown = []
    for cue in reversed(found):
        limit_s = next_start_s.get(cue.channel, cue.start_s + MIN_S)
        end_s = min(max(cue.end_s, min(cue.start_s + MIN_S, limit_s)), cue.start_s + MAX_S)
        shown.append(replace(cue, end_s=end_s))
        next_start_s[cue.channel] = cue.start_s
    return shown[::-1]
