"""Each family's prompts, word for word, and the options that it refuses.

The models were trained on this wording and fall back to plain transcription on any other, so a prompt
that is nearly right fails silently. Sources are in ``speech.models.families``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from speech.errors import RequestError, UsageError
from speech.models.checkpoint import family_of
from speech.models.families import (
    DEFAULT_MODEL,
    GRANITE_4_0,
    GRANITE_4_1,
    GRANITE_4_1_PLUS,
    GRANITE_CTC,
    GRANITE_TURBO_CTC,
    LANGUAGE_NAMES,
    PARAKEET_CTC,
    PARAKEET_TDT,
    PARAKEET_TDT_V3,
    WHISPER,
    WHISPER_ENGLISH,
    Family,
)
from speech.recording import Options

FAMILIES = [GRANITE_4_0, GRANITE_4_1, GRANITE_4_1_PLUS, WHISPER, WHISPER_ENGLISH]


class Template:
    """Granite 4.0's chat template, as its model card shows it rendered."""

    def apply_chat_template(
        self, conversation: Sequence[dict[str, str]], *, tokenize: Literal[False], add_generation_prompt: bool
    ) -> str:
        assert add_generation_prompt
        names = {"system": "SYSTEM", "user": "USER"}
        return "".join(f"{names[turn['role']]}: {turn['content']}\n" for turn in conversation) + " ASSISTANT:"


def prompt(family: Family, **options: Any) -> str:
    asked = Options(**options)
    family.check(asked)
    return family.prompt(asked, Template())


# Prompts

ASK = "can you transcribe the speech into a written format?"


@pytest.mark.parametrize(
    ("family", "options", "instruction"),
    [
        (GRANITE_4_0, {}, ASK),
        (GRANITE_4_0, {"language": "ja"}, ASK),  # the model detects the language
        (GRANITE_4_0, {"keywords": "Acme Corp, Kim"}, f"{ASK} Keywords: Acme Corp, Kim"),
        (GRANITE_4_0, {"task": "translate", "target_language": "de"}, "translate the speech to German"),
        (GRANITE_4_0, {"task": "translate", "target_language": "zh"}, "translate the speech to Mandarin"),
        (GRANITE_4_0, {"task": "translate", "language": "fr"}, "translate the speech to English"),
        (
            GRANITE_4_0,
            {"task": "translate", "target_language": "de", "keywords": "Kim"},
            "translate the speech to German. Keywords: Kim",
        ),
        (GRANITE_4_1, {}, ASK),
        (GRANITE_4_1, {"keywords": "Kim"}, "transcribe the speech to text. Keywords: Kim"),
        (GRANITE_4_1, {"punctuation": True}, "transcribe the speech with proper punctuation and capitalization."),
        (
            GRANITE_4_1,
            {"task": "translate", "target_language": "de", "punctuation": True},
            "translate the speech to German with proper punctuation and capitalization.",
        ),
    ],
)
def test_granite(family: Family, options: dict[str, Any], instruction: str) -> None:
    assert prompt(family, **options) == f"USER: <|audio|>{instruction}\n ASSISTANT:"


@pytest.mark.parametrize(
    ("options", "instruction"),
    [
        ({}, ASK),
        ({"keywords": "Kim"}, f"{ASK} Keywords: Kim"),
        (
            {"speaker_tags": True},
            "Speaker attribution: Transcribe and denote who is speaking by adding [Speaker 1]: and [Speaker 2]: "
            "tags before speaker turns.",
        ),
        ({"word_timestamps": True}, ASK),
    ],
)
def test_granite_plus_has_the_system_prompt_of_its_training(options: dict[str, Any], instruction: str) -> None:
    system = (
        "SYSTEM: Knowledge Cutoff Date: April 2024.\nToday's Date: December 19, 2024.\n"
        "You are Granite, developed by IBM. You are a helpful AI assistant\n"
    )
    assert prompt(GRANITE_4_1_PLUS, **options) == f"{system}USER: <|audio|> {instruction}\n ASSISTANT:"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"),
        ({"language": "de", "task": "translate"}, "<|startoftranscript|><|de|><|translate|><|notimestamps|>"),
        (
            {"keywords": "Acme, Kim"},
            "<|startofprev|> Acme, Kim<|startoftranscript|><|en|><|transcribe|><|notimestamps|>",
        ),
    ],
)
def test_whisper(options: dict[str, Any], expected: str) -> None:
    assert prompt(WHISPER, **options) == expected


# Options that a family refuses


@pytest.mark.parametrize(
    ("family", "options", "code", "named"),
    [
        (GRANITE_4_0, {"language": "it"}, "unsupported_language", "de, en, es, fr, ja, pt"),
        (GRANITE_4_1_PLUS, {"language": "ja"}, "unsupported_language", "de, en, es, fr, pt"),
        (WHISPER_ENGLISH, {"language": "de"}, "unsupported_language", "it has en"),
        (GRANITE_4_0, {"language": "de", "task": "translate", "target_language": "fr"}, "unsupported_task", "de-en"),
        (GRANITE_4_1_PLUS, {"language": "de", "task": "translate"}, "unsupported_task", "no translation"),
        (WHISPER, {"task": "translate", "target_language": "de"}, "unsupported_task", "fr-en"),
        (GRANITE_4_0, {"punctuation": True}, "unsupported_option", "no punctuation; it has keywords"),
        (WHISPER, {"word_timestamps": True}, "unsupported_option", "no word_timestamps .*cross-attention"),
        (
            GRANITE_4_0,
            {"word_timestamps": True, "task": "translate", "target_language": "de"},
            "unsupported_option",
            "a transcription",
        ),
        (WHISPER, {"speaker_tags": True}, "unsupported_option", "no speaker_tags"),
        (PARAKEET_CTC, {"language": "de"}, "unsupported_language", "it has en"),
        (GRANITE_TURBO_CTC, {"keywords": "Kim"}, "unsupported_option", "it has word_timestamps"),
        (GRANITE_4_1_PLUS, {"speaker_tags": True, "keywords": "Kim"}, "unsupported_option", "no keywords with"),
    ],
)
def test_the_refusal_of_an_option_lists_what_is_supported(
    family: Family, options: dict[str, Any], code: str, named: str
) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        family.check(Options(**options))
    assert caught.value.code == code
    assert family.name in caught.value.message


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_everything_a_family_supports_has_a_prompt(family: Family) -> None:
    for language in family.languages:
        assert prompt(family, language=language)
    for spoken, into in family.translations:
        assert spoken in family.languages
        assert prompt(family, language=spoken, task="translate", target_language=into)
    for capability in family.capabilities:
        assert prompt(family, **{capability: "Kim" if capability == "keywords" else True})


def test_every_language_to_translate_into_has_a_name() -> None:
    assert {into for family in FAMILIES[:3] for _, into in family.translations} <= set(LANGUAGE_NAMES)


@pytest.mark.engine
def test_whispers_languages_are_tokens_of_its_vocabulary() -> None:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    assert set(WHISPER.languages) <= set(LANGUAGES)
    assert set(LANGUAGES) - set(WHISPER.languages) == {"yue"}  # of large-v3 alone


def test_no_real_transcript_reaches_the_token_limit() -> None:
    """The fastest talkers reach 25 characters a second, and English has about four characters a token."""
    for family in FAMILIES:
        assert family.max_tokens(30) > 30 * 25 / 4 * 1.5
        assert family.max_tokens(30) < 2048  # and beside its audio it fits a context of 4096
        assert family.max_tokens(0.5) >= 16


# Detection of the family


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (DEFAULT_MODEL, GRANITE_4_0),
        ("ibm-granite/granite-speech-4.1-2b", GRANITE_4_1),
        ("ibm-granite/granite-speech-4.1-2b-plus", GRANITE_4_1_PLUS),
        ("openai/whisper-large-v3-turbo", WHISPER),
        ("openai/whisper-small.en", WHISPER_ENGLISH),
    ],
)
def test_the_family_by_hub_id(model: str, family: Family) -> None:
    assert family_of(model) is family


@pytest.mark.parametrize(
    ("folder", "config", "family"),
    [
        ("mine", {"model_type": "granite_speech"}, GRANITE_4_0),
        ("granite-speech-4.1-2b", {"model_type": "granite_speech"}, GRANITE_4_1),
        ("mine", {"model_type": "granite_speech_plus"}, GRANITE_4_1_PLUS),
        ("mine", {"model_type": "whisper", "vocab_size": 51866}, WHISPER),
        ("mine", {"model_type": "whisper", "vocab_size": 51864}, WHISPER_ENGLISH),
    ],
)
def test_the_family_by_checkpoint(tmp_path: Path, folder: str, config: dict[str, Any], family: Family) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "config.json").write_text(json.dumps(config))
    assert family_of(str(tmp_path / folder)) is family


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("ibm-granite/granite-speech-5.0-470m-turboctc", GRANITE_TURBO_CTC),
        ("nvidia/parakeet-ctc-1.1b", PARAKEET_CTC),
        ("nvidia/parakeet-tdt-0.6b-v2", PARAKEET_TDT),
        ("nvidia/parakeet-tdt-0.6b-v3", PARAKEET_TDT_V3),
        (DEFAULT_MODEL, GRANITE_CTC),
        ("ibm-granite/granite-speech-4.1-2b-plus", GRANITE_CTC),
    ],
)
def test_the_family_of_an_encoder(model: str, family: Family) -> None:
    assert family_of(model, "encoder") is family


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "granite_speech5_ctc", "vocab_size": 16384}, GRANITE_TURBO_CTC),
        ({"model_type": "parakeet_ctc", "vocab_size": 1025}, PARAKEET_CTC),
        ({"model_type": "parakeet_tdt", "vocab_size": 1025}, PARAKEET_TDT),
        ({"model_type": "parakeet_tdt", "vocab_size": 8193}, PARAKEET_TDT_V3),
        ({"model_type": "granite_speech"}, GRANITE_CTC),
    ],
)
def test_the_family_of_an_encoder_by_checkpoint(tmp_path: Path, config: dict[str, Any], family: Family) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert family_of(str(tmp_path), "encoder") is family


def test_an_engine_that_cannot_run_the_model_is_refused_with_one_that_can() -> None:
    for engine in ("vllm", "transformers"):
        with pytest.raises(UsageError, match="--engine encoder"):
            family_of("nvidia/parakeet-ctc-1.1b", engine)
    with pytest.raises(UsageError, match="--engine vllm"):
        family_of("openai/whisper-small", "encoder")


def test_the_shipped_model_is_a_granite() -> None:
    assert family_of(str(Path(__file__).parents[3] / "demo" / "model")) is GRANITE_4_0


def test_the_refusal_of_an_unknown_model_lists_the_families(tmp_path: Path) -> None:
    for content in (None, '{"model_type": "llama"}', "{broken"):
        if content:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(UsageError, match=r"config.json|Granite Speech .* nor Whisper") as caught:
            family_of(str(tmp_path))
        assert caught.value.code == "unknown_model"
    with pytest.raises(UsageError, match="nor Whisper"):
        family_of("meta/llama")


def test_an_engine_without_ctc_refuses_word_times_and_says_why() -> None:
    family = family_of("granite-speech:4.1", "http")
    family.check(Options(keywords=("Kim",), punctuation=True))
    with pytest.raises(RequestError, match=r"no word_timestamps in llama\.cpp"):
        family.check(Options(word_timestamps=True))
