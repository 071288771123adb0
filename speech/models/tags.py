"""Reads the tags that Granite Speech 4.1 plus writes into its text.

Two kinds, one a prompt (model card of ibm-granite/granite-speech-4.1-2b-plus):

    [Speaker 1]: hello how are you [Speaker 2]: fine
    hello [T:45] _ [T:60] world [T:82]

A time tag gives the end of the word before it in centiseconds from the start of the clip, *modulo
1000*: it rolls over every ten seconds and must be unrolled. ``_`` stands for silence.
"""

import re

from speech.transcript import Word

_SPEAKER = re.compile(r"\[Speaker (\d+)\]:")
_TIME = re.compile(r"\[T:(\d+)\]")
_TIMED = re.compile(rf"((?:(?!\[T:)\S)+)\s*{_TIME.pattern}")
_ROLLOVER_S = 10.0


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
        start_s: where the clip starts; added to every time.

    Returns:
        Words in order, each starting where the one before it (or a silence) ended.
    """
    words = []
    end_s = 0.0
    for spoken, centiseconds in _TIMED.findall(text):
        word_start_s, tag_s = end_s, int(centiseconds) / 100 % _ROLLOVER_S
        end_s = word_start_s - word_start_s % _ROLLOVER_S + tag_s
        if end_s < word_start_s - 1e-9:  # smaller than the tag before: the clock has rolled over
            end_s += _ROLLOVER_S
        if spoken != "_":
            words.append(Word(spoken, round(start_s + word_start_s, 2), round(start_s + end_s, 2)))
    return words


def without_time_tags(text: str) -> str:
    """The bare words of a text with time tags; those that the model has left untagged, too."""
    return " ".join(word for word in _TIME.sub(" ", text).split() if word != "_")
