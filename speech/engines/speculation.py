"""Which drafts the language model is given to verify, and for whom.

The engine's ``speculation`` says how a run drafts; whether a clip is drafted for depends on what is
asked of it as well. Verified drafts cost or save time and change no word, so where they cannot help
they are left out without a word; only an explicit wish that cannot be met is refused.

``ctc-accept`` alone changes words: what CTC reads is accepted where the model might have written
otherwise. It is never chosen by itself, and refused for whatever CTC cannot write: it would either ignore
what was asked for, or not be what it says.
"""

from typing import Literal

from speech.errors import RequestError, UsageError
from speech.models.families import Family, Granite
from speech.recording import Options

Speculation = Literal["auto", "ctc", "ngram", "draft", "off", "ctc-accept"]
Method = Literal["ctc", "ngram", "draft"]

# Tokens of a draft that are verified at once, at most. What CTC has read is there anyway; a draft model takes a
# step of its own for every token.
DRAFT_TOKENS: dict[Method, int] = {"ctc": 32, "ngram": 8, "draft": 4}


def method_for(asked: Speculation, family: Family, engine: str, draft_model: str | None = None) -> Method | None:
    """How an engine drafts for a model, None for not at all.

    Raises:
        UsageError: ``bad_option`` where ``asked`` names a way that this model or engine has not, or where it
            and ``draft_model`` do not go together.
    """
    if (asked == "draft") != (draft_model is not None):
        raise UsageError("bad_option", "speculation 'draft' and a draft_model go together: give both or neither")
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
    """Refuses ``ctc-accept`` for what CTC cannot write.

    Raises:
        RequestError: ``unsupported_option``.
    """
    if asked == "ctc-accept" and (beyond := _beyond_ctc(options, keywords=True)):
        raise RequestError(
            "unsupported_option",
            f"speculation 'ctc-accept' takes what the encoder reads for the answer, which has no {beyond}; "
            "transcribe such recordings with speculation auto or off",
        )


def ctc_can_help(options: Options) -> bool:
    """Whether what the encoder's CTC head reads is near what the model is asked to write.

    Keywords do no harm: the model, which knows them, verifies.
    """
    return _beyond_ctc(options, keywords=False) is None


def _beyond_ctc(options: Options, keywords: bool) -> str | None:
    """What is asked for that the CTC head cannot write.

    It writes the spoken language in lower case without punctuation, in letters up to Latin Extended-A, and
    knows no prompt.
    """
    asked = {
        "translation": options.task == "translate",
        "keywords": keywords and bool(options.keywords),
        "punctuation": options.punctuation,
        "word times": options.word_timestamps,
        "speaker tags": options.speaker_tags,
        "Japanese": options.language == "ja",
    }
    return next((name for name, wanted in asked.items() if wanted), None)
