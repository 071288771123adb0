"""Parses the tags of speakers in the output of Granite Speech 4.1 plus.

    [Speaker 1]: hello how are you [Speaker 2]: fine

Source: the model card of ibm-granite/granite-speech-4.1-2b-plus.
"""

import re

_SPEAKER = re.compile(r"\[Speaker (\d+)\]:")


def speaker_turns(text: str) -> list[tuple[str | None, str]]:
    """Splits a text at its speaker tags: ``[(speaker, words), …]``.

    The speaker is ``"Speaker N"``, or None for words before the first tag. Empty turns are dropped.
    """
    before, *tagged = _SPEAKER.split(text)
    turns: list[tuple[str | None, str]] = [(None, before.strip())]
    turns += [(f"Speaker {number}", words.strip()) for number, words in zip(tagged[::2], tagged[1::2], strict=True)]
    return [(speaker, words) for speaker, words in turns if words]


def mask_speaker_tags(text: str) -> str:
    """The text with spaces in place of its tags, as long as before."""
    return _SPEAKER.sub(lambda tag: " " * len(tag[0]), text)
