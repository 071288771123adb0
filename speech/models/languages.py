"""The detection of the language, as in Whisper's paper (arXiv 2212.04356, section 2.3): the token after the first.

The probabilities are those of the language tokens alone, as in OpenAI's ``detect_language``. The paper detects from a
window of 30 s; a call's clips are shorter, so that several are taken together (``most_probable``).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from speech.models.families import Family

WHISPER_START = "<|startoftranscript|>"


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is needed."""

    def get_vocab(self) -> dict[str, int]: ...


def language_token_ids(tokenizer: Tokenizer, family: Family) -> dict[str, int]:
    """The token of each language that the family and this checkpoint have."""
    vocabulary = tokenizer.get_vocab()
    tokens = {language: vocabulary.get(f"<|{language}|>") for language in sorted(family.languages)}
    return {language: token for language, token in tokens.items() if token is not None}


def normalised(scores: Mapping[str, float]) -> dict[str, float]:
    """Log probabilities that together are 1, from logits or from log probabilities of a part of the vocabulary."""
    highest = max(scores.values())
    total = highest + math.log(sum(math.exp(score - highest) for score in scores.values()))
    return {language: score - total for language, score in scores.items()}


def most_probable(clips: Sequence[Mapping[str, float]]) -> tuple[str, float]:
    """The language of a recording and its probability, from the log probabilities of each of its clips.

    The clips count as independent: their log probabilities are added.
    """
    joint = normalised({language: sum(clip[language] for clip in clips) for language in clips[0]})
    language = max(joint, key=joint.__getitem__)
    return language, math.exp(joint[language])
