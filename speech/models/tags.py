"""Parses the tags in the output of Granite Speech 4.1 plus.

Two kinds, each with a prompt of its own (model card of ibm-granite/granite-speech-4.1-2b-plus):

    [Speaker 1]: hello how are you [Speaker 2]: fine
    hello [T:45] _ [T:60] world [T:82]

A time tag is the end time of the word before it in centiseconds from the start of the clip, *modulo
1000*: it wraps around every ten seconds and must be unwrapped. ``_`` stands for silence.
"""

import re

from speech.transcript import Word

_SPEAKER = re.compile(r"\[Speaker (\d+)\]:")
_TIME = re.compile(r"\[T:(\d+)\]")
_TIMED_WORD = re.compile(rf"((?:(?!\[T:)\S)+)\s*{_TIME.pattern}")
_PERIOD_S = 10.0


def speaker_turns(text: str) -> list[tuple[str | None, str]]:
    """Splits a text at its speaker tags: ``[(speaker, words), …]``.

    The speaker is ``"Speaker N"``, or None for words before the first tag. Empty turns are dropped.
    """
    before, *tagged = _SPEAKER.split(text)
    turns: list[tuple[str | None, str]] = [(None, before.strip())]
    turns += [(f"Speaker {number}", words.strip()) for number, words in zip(tagged[::2], tagged[1::2], strict=True)]
    return [(speaker, words) for speaker, words in turns if words]


def timed_words(text: str, start_s: float = 0.0) -> list[Word]:
    """Words with their times, silences left out.

    Args:
        text: the model's output for one clip.
        start_s: start of the clip in the recording; added to every time.

    Returns:
        Words in order, each starting at the end of the word or silence before it.
    """
    words = []
    end_s = 0.0
    for word, centiseconds in _TIMED_WORD.findall(text):
        word_start_s, tag_s = end_s, int(centiseconds) / 100 % _PERIOD_S
        end_s = word_start_s - word_start_s % _PERIOD_S + tag_s
        if end_s < word_start_s - 1e-9:  # smaller than the tag before: it has wrapped around
            end_s += _PERIOD_S
        if word != "_":
            words.append(Word(word, round(start_s + word_start_s, 2), round(start_s + end_s, 2)))
    return words


def without_time_tags(text: str) -> str:
    """The words of a text with time tags, also those without a tag."""
    return " ".join(word for word in _TIME.sub(" ", text).split() if word != "_")
