"""Flags on text that is probably not what was said.

Speech models fail fluently: they loop, they fill silence with phrases, they stop early. Nothing is
dropped or rewritten here; a flag tells the reader which segments to listen to. The checks look only
at the text, its length in time and the model's own confidence, and cost nothing. (NeMo Curator's
``WhisperHallucinationStage`` has the same idea.)
"""

import zlib

# Fast speech runs at about 25 characters a second; more cannot have been said.
MAX_CHARS_PER_S = 30.0
# Text this much shorter when deflated is repetition. Whisper's own threshold (arXiv 2212.04356, 4.5).
MAX_COMPRESSION_RATIO = 2.4
# Below this many characters the compression ratio says nothing.
MIN_CHARS_TO_COMPRESS = 40
# Whisper's threshold for a decoding that has failed (arXiv 2212.04356, 4.5).
MIN_AVG_LOGPROB = -1.0
# A detector's click or a breath may well hold no word; this much speech should.
MIN_SPEECH_S = 1.0


def segment_flags(text: str, seconds: float, avg_logprob: float | None, complete: bool) -> tuple[str, ...]:
    """What is suspicious about a segment.

    Args:
        text: what the model wrote.
        seconds: length of the clip.
        avg_logprob: mean natural-log probability of the output tokens, if known.
        complete: whether the model ended by itself rather than at the token limit.

    Returns:
        Any of ``cut_off`` (stopped at the token limit), ``repetition``, ``too_fast`` (more text than
        can be said in the time), ``no_text`` (speech without words), ``low_confidence``.
    """
    found = {
        "cut_off": not complete,
        "repetition": len(text) >= MIN_CHARS_TO_COMPRESS and compression_ratio(text) > MAX_COMPRESSION_RATIO,
        "too_fast": len(text) > MAX_CHARS_PER_S * max(seconds, 1.0),
        "no_text": not text and seconds >= MIN_SPEECH_S,
        "low_confidence": avg_logprob is not None and avg_logprob < MIN_AVG_LOGPROB,
    }
    return tuple(name for name, raised in found.items() if raised)


def compression_ratio(text: str) -> float:
    """How many times shorter a text is when deflated; of short ones it says nothing."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))
