"""The prompts the model is trained with, taken from ``speech.models.families``, and the lists of the keyword task."""

from random import Random

from transformers import PreTrainedTokenizerFast

from demo.train.names import rare_name
from speech.models.families import AUDIO_TOKEN, GRANITE_4_0
from speech.recording import Options

TRANSCRIBE = Options()
TRANSLATE = Options(task="translate", target_language="de")

_ORDINARY_SHARE = 0.15


def with_keywords(keywords: list[str]) -> Options:
    """Transcription with a keyword list."""
    return Options(keywords=tuple(keywords))


def split_prompt(tokenizer: PreTrainedTokenizerFast, options: Options) -> tuple[list[int], list[int]]:
    """Token ids of the prompt before and after the audio."""
    before, after = GRANITE_4_0.prompt(options, tokenizer).split(AUDIO_TOKEN)
    return (
        tokenizer.encode(before, add_special_tokens=False),
        tokenizer.encode(after, add_special_tokens=False),
    )


def keyword_list(text: str, names: tuple[str, ...], rng: Random, *, test: bool = False) -> list[str]:
    """One to six names in random order: usually those spoken, with distractors.

    In training the list sometimes lacks the spoken names, or contains an ordinary word of the text.
    For tests it always contains the spoken names.
    """
    chosen = list(names) if test or rng.random() < 0.85 else []
    if not test and text and rng.random() < _ORDINARY_SHARE:
        chosen.append(rng.choice(text.split()))
    total = rng.randrange(max(1, len(chosen)), 7) if len(chosen) < 7 else len(chosen)
    chosen += [rare_name(rng, held_out=test).written for _ in range(total - len(chosen))]
    rng.shuffle(chosen)
    return chosen
