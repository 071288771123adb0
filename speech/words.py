"""The words of a text, by language: what is between spaces or, in a script without spaces, each character."""

import re

# Languages written without spaces between words.
UNSPACED_LANGUAGES = frozenset({"ja", "zh", "th", "lo", "my", "km", "bo"})
_WORD, _CHARACTER = re.compile(r"\S+"), re.compile(r"\S")


def word_spans(text: str, language: str) -> list[tuple[int, int]]:
    """Start and end of each word in a text."""
    pattern = _CHARACTER if language in UNSPACED_LANGUAGES else _WORD
    return [match.span() for match in pattern.finditer(text)]
