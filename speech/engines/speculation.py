"""Speculative decoding: the method of drafting by model and engine, and the requests that it applies to.

``speculation`` of the engine's settings chooses the method; whether a clip is drafted for depends on its options as
well. Verified drafts cost or save time and never change the text, so where they cannot help they are silently left
out; only an explicit choice that is not available is refused.
"""

from typing import Literal

from speech.errors import UsageError
from speech.models.families import Family, Granite
from speech.recording import Options

Speculation = Literal["auto", "ctc", "ngram", "off"]
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
    return "ctc" if asked == "auto" else asked


def ctc_can_help(options: Options) -> bool:
    """Whether the CTC hypothesis is a useful draft of the text that these options ask for.

    A hypothesis is a transcript in the spoken language, lower case, without punctuation, in characters up to Latin
    Extended-A. Keywords do no harm: they are in the prompt of the model that verifies.
    """
    return not (options.task == "translate" or options.punctuation or options.speaker_tags or options.language == "ja")
