"""Which drafts the language model is given to verify, and for whom.

The engine's ``speculation`` says how a run drafts; whether a clip is drafted for depends on what is
asked of it as well. Verified drafts cost or save time and change no word, so where they cannot help
they are left out without a word; only an explicit wish that cannot be met is refused.

``ctc-accept`` alone changes words: drafts are accepted that the model would have written otherwise. It
is never chosen by itself, and never applied where the model knows what CTC cannot (keywords).
"""

from typing import Literal

from speech.errors import UsageError
from speech.models import Family, Granite
from speech.recording import Options

Speculation = Literal["auto", "ctc", "ngram", "off", "ctc-accept"]
Method = Literal["ctc", "ngram"]


def method_for(asked: Speculation, family: Family, engine: str) -> Method | None:
    """How an engine drafts for a model, None for not at all.

    Raises:
        UsageError: ``bad_option`` where ``asked`` names a way that this model or engine has not.
    """
    possible: tuple[Method, ...] = ()
    if engine == "vllm" and isinstance(family, Granite):
        possible = ("ctc", "ngram")
    if asked == "off":
        return None
    if asked == "auto":
        return "ctc" if "ctc" in possible else None
    wanted: Method = "ngram" if asked == "ngram" else "ctc"
    if wanted not in possible:
        raise UsageError(
            "bad_option",
            f"speculation {asked!r} needs Granite Speech in the vllm engine, not {family.name} in {engine}; "
            "give auto or off",
        )
    return wanted


def ctc_can_help(options: Options) -> bool:
    """Whether what the encoder's CTC head reads is near what the model is asked to write.

    The head writes the spoken language in lower case without punctuation, in letters up to Latin
    Extended-A. Keywords do no harm: the model, which knows them, verifies.
    """
    tagged = options.word_timestamps or options.speaker_tags
    return options.task == "transcribe" and not options.punctuation and not tagged and options.language != "ja"


def may_be_relaxed(options: Options) -> bool:
    """Whether ``ctc-accept`` may take CTC's words for the model's."""
    return ctc_can_help(options) and not options.keywords
