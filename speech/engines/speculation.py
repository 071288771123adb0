"""Speculative decoding: the method of drafting by model and engine, and the requests that it applies to.

``speculation`` of the engine's settings chooses the method; whether a clip is drafted for depends on its options as
well. Verified drafts cost or save time and never change the text, so where they cannot help they are silently left
out; only an explicit choice that is not available is refused.

``ctc-accept`` alone changes words: it accepts the CTC hypothesis where the model might have decoded otherwise. It is
never chosen by default, and refused for options whose text CTC cannot produce: it would ignore either the options or
its own name.
"""

from typing import Literal

from speech.errors import RequestError, UsageError
from speech.models.families import Family, Granite
from speech.recording import Options

Speculation = Literal["auto", "ctc", "ngram", "off", "ctc-accept"]
Method = Literal["ctc", "ngram"]

# Draft tokens verified at once, at most.
DRAFT_TOKENS: dict[Method, int] = {"ctc": 32, "ngram": 8}


def method_for(asked: Speculation, family: Family, engine: str) -> Method | None:
    """The method by which an engine drafts for a model; None for no drafts.

    Raises:
        UsageError: ``bad_option`` where ``asked`` names a method that this model or engine does not have.
    """
    can_draft = engine == "vllm" and isinstance(family, Granite)
    if asked == "off" or (asked == "auto" and not can_draft):
        return None
    if not can_draft:
        raise UsageError(
            "bad_option",
            f"speculation {asked!r} needs Granite Speech in the vllm engine, not {family.name} in {engine}; "
            "give auto or off",
        )
    return "ctc" if asked == "auto" or asked == "ctc-accept" else asked


def check_speculation(asked: Speculation, options: Options) -> None:
    """Refuses ``ctc-accept`` for options whose text CTC cannot produce.

    Raises:
        RequestError: ``unsupported_option``.
    """
    if asked == "ctc-accept" and (lacking := _beyond_ctc(options, keywords=True)):
        raise RequestError(
            "unsupported_option",
            f"speculation 'ctc-accept' accepts the encoder's CTC hypothesis as text, which has no {lacking}; "
            "transcribe such recordings with speculation auto or off",
        )


def ctc_can_help(options: Options) -> bool:
    """Whether the CTC hypothesis is a useful draft of the text that these options ask for.

    Keywords do no harm: they are in the prompt of the model that verifies.
    """
    return _beyond_ctc(options, keywords=False) is None


def _beyond_ctc(options: Options, keywords: bool) -> str | None:
    """The first option that a CTC hypothesis cannot fulfil; None if there is none.

    A hypothesis is a transcript in the spoken language, lower case, without punctuation, in characters up to Latin
    Extended-A, and does not depend on the prompt.
    """
    asked = {
        "translation": options.task == "translate",
        "keywords": keywords and bool(options.keywords),
        "punctuation": options.punctuation,
        "word times": options.word_timestamps,
        "speaker tags": options.speaker_tags,
        "Japanese": options.language == "ja",
    }
    return next((name for name, is_asked in asked.items() if is_asked), None)
