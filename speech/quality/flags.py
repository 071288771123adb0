"""Flags on segments whose text is probably not what was said.

ASR models fail with fluent text: repetition loops, phrases hallucinated in silence, early stops. Nothing is
dropped or rewritten here; a flag marks segments to listen to. The checks use only
the text, the clip's duration and the model's own log-probabilities, and cost next to nothing. (NeMo Curator's
``WhisperHallucinationStage`` has the same purpose.)
"""

import zlib

# Fast speech has about 25 characters a second; more cannot have been said.
MAX_CHARS_PER_S = 30.0
# Text that deflates by more than this ratio is repetition. Whisper's own threshold (arXiv 2212.04356, 4.5).
MAX_COMPRESSION_RATIO = 2.4
# Below this many characters the compression ratio is meaningless.
MIN_CHARS_TO_COMPRESS = 40
# Whisper's threshold for a failed decoding (arXiv 2212.04356, 4.5).
MIN_AVG_LOGPROB = -1.0
# A shorter clip may be a click or a breath, falsely detected as speech; a clip this long should have words.
MIN_SPEECH_S = 1.0


def segment_flags(text: str, seconds: float, avg_logprob: float | None, complete: bool) -> tuple[str, ...]:
    """The flags of one segment.

    Args:
        text: output of the model.
        seconds: duration of the clip.
        avg_logprob: mean natural-log probability of the output tokens, if known.
        complete: False if decoding stopped at the token limit.

    Returns:
        Any of ``cut_off`` (stopped at the token limit), ``repetition``, ``too_fast`` (more text than
        can be said in the time), ``no_text`` (speech without words), ``low_confidence``.
    """
    raised = {
        "cut_off": not complete,
        "repetition": len(text) >= MIN_CHARS_TO_COMPRESS and compression_ratio(text) > MAX_COMPRESSION_RATIO,
        "too_fast": len(text) > MAX_CHARS_PER_S * max(seconds, 1.0),
        "no_text": not text and seconds >= MIN_SPEECH_S,
        # Without words there is none to doubt: the log-probability is of the end alone.
        "low_confidence": bool(text) and avg_logprob is not None and avg_logprob < MIN_AVG_LOGPROB,
    }
    return tuple(name for name, is_raised in raised.items() if is_raised)


def compression_ratio(text: str) -> float:
    """Length of a text over its deflated length, in bytes; meaningless for short texts."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))
