"""A clip's words with their times and two confidences: the language model's, and the CTC head's."""

import math
from collections.abc import Iterator, Sequence

import torch

from speech.granite.vocabulary import Vocabulary
from speech.granite.word_times import align_words
from speech.models.tags import mask_speaker_tags
from speech.recording import Options
from speech.transcript import Word
from speech.words import word_spans


def timed_words(
    text: str,
    tokens: Sequence[tuple[int, float]],
    log_posteriors: torch.Tensor,
    vocabulary: Vocabulary,
    options: Options,
) -> tuple[Word, ...]:
    """The words of a clip, without tags of speakers.

    Args:
        text: as the model wrote it.
        tokens: of the text, with their natural-log probabilities, special ones included.
        log_posteriors: CTC posteriors of the clip, natural logarithm, shape (frames, labels), float32, on the CPU.
        vocabulary: of the model's tokenizer.
        options: of the recording.

    Returns:
        The words, in order; times in seconds from the start of the clip. ``probability`` is the product of the
        probabilities of the tokens that a word is made of.
    """
    spans = word_spans(mask_speaker_tags(text) if options.speaker_tags else text, options.language)
    words = [text[start:end] for start, end in spans]
    times = align_words(words, log_posteriors)
    return tuple(
        Word(word, time.start_s, time.end_s, probability, time.score)
        for word, time, probability in zip(words, times, _probabilities(text, spans, tokens, vocabulary), strict=True)
    )


def _probabilities(
    text: str, spans: Sequence[tuple[int, int]], tokens: Sequence[tuple[int, float]], vocabulary: Vocabulary
) -> Iterator[float | None]:
    """The probability of each word; None where the tokens do not add up to the text."""
    bounds = [0]
    for token, _ in tokens:
        bounds.append(bounds[-1] + vocabulary.byte_length_of(token))
    if bounds[-1] != len(text.encode()):
        yield from [None] * len(spans)
        return
    for start, end in spans:
        first, last = len(text[:start].encode()), len(text[:end].encode())
        overlapping = (
            log_prob
            for (_, log_prob), token_start, token_end in zip(tokens, bounds, bounds[1:], strict=False)
            if token_start < last and token_end > first
        )
        yield math.exp(sum(overlapping))
