"""Model families: what each supports, and its prompts.

One entry a family: languages, translation pairs, clip limit, capabilities, and the exact wording of
its prompts. All differences between Granite 4.0, 4.1, 4.1 plus and Whisper are in this
file; the engines and the pipeline depend on none of them. ``Family.check`` refuses what a model does not support.

Models that are an encoder alone, with a CTC head or a transducer's, have no prompt (``EncoderOnly``). Granite Speech's
own CTC head counts as one: the encoder engine runs it without the language model.

Sources of the prompts: the model cards of ibm-granite/granite-4.0-1b-speech, granite-speech-4.1-2b
and 4.1-2b-plus, IBM's ``granite_speech.prompts`` (Apache-2.0), and Whisper's paper (arXiv 2212.04356,
section 2.3). The models do not follow free-form instructions, so a prompt is always one of these. Languages of the
encoders: the model cards of ibm-granite/granite-speech-5.0-470m-turboctc, nvidia/parakeet-ctc-1.1b and
nvidia/parakeet-tdt-0.6b-v3.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from speech.errors import RequestError
from speech.recording import AUTO, Options

Capability = Literal["keywords", "punctuation", "word_timestamps", "speaker_tags"]

AUDIO_TOKEN = "<|audio|>"
LANGUAGE_NAMES = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "pt": "Portuguese",
    "zh": "Mandarin",
}


class ChatTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    def apply_chat_template(
        self, conversation: Sequence[dict[str, str]], *, tokenize: Literal[False], add_generation_prompt: bool
    ) -> str: ...


@dataclass(frozen=True)
class Family(ABC):
    """A model family. ``clip_s`` is the length of the longest clip that it decodes, in seconds."""

    name: str
    model_type: str  # of the checkpoint's config.json
    languages: frozenset[str]
    translations: frozenset[tuple[str, str]]  # (source, target)
    capabilities: frozenset[Capability]
    clip_s: float
    # Decoding stops after this many tokens a second of audio (plus a constant), so that a repetition loop
    # costs a bounded time. Speech has about 15 characters a second and a token at least one: no real transcript
    # reaches the limit.
    max_tokens_per_s: float = 16.0
    reasons: Mapping[Capability, str] = field(default_factory=dict)  # why it lacks one, for the message
    detects_language: bool = False

    def check(self, options: Options) -> None:
        """Refuses options that this family does not support, with a message that lists what it supports.

        Raises:
            RequestError: unsupported_language, unsupported_task or unsupported_option.
        """
        if options.language == AUTO:
            self.check_detection()
        elif options.language not in self.languages:
            raise RequestError(
                "unsupported_language",
                f"{self.name} does not transcribe {options.language!r}; it has {_listed(self.languages)}",
            )
        pair = (options.language, options.target_language)
        targets = {target for _, target in self.translations}
        possible = pair in self.translations or (options.language == AUTO and options.target_language in targets)
        if options.task == "translate" and not possible:
            pairs = _listed(f"{source}-{target}" for source, target in self.translations)
            raise RequestError(
                "unsupported_task",
                f"{self.name} does not translate {pair[0]!r} into {pair[1]!r}; it has {pairs or 'no translation'}",
            )
        if options.word_timestamps and options.task == "translate":
            raise RequestError("unsupported_option", f"{self.name} gives word_timestamps of a transcription only")
        asked: dict[Capability, bool] = {
            "keywords": bool(options.keywords),
            "punctuation": options.punctuation,
            "word_timestamps": options.word_timestamps,
            "speaker_tags": options.speaker_tags,
        }
        for capability, is_asked in asked.items():
            if is_asked and capability not in self.capabilities:
                raise RequestError(
                    "unsupported_option",
                    f"{self.name} has no {capability}{self.reasons.get(capability, '')}; "
                    f"it has {_listed(self.capabilities)}",
                )

    def check_detection(self) -> None:
        """Refuses the language ``auto`` if the model cannot detect the language.

        Raises:
            RequestError: unsupported_language.
        """
        if not self.detects_language:
            raise RequestError(
                "unsupported_language",
                f"{self.name} cannot detect the language: say which is spoken, or use Whisper, which can",
            )

    @abstractmethod
    def prompt(self, options: Options, tokenizer: ChatTokenizer) -> str:
        """The text prompt for one clip. ``options`` have passed ``check``."""

    def max_tokens(self, clip_s: float) -> int:
        """The limit of output tokens for a clip of ``clip_s`` seconds."""
        return 16 + int(clip_s * self.max_tokens_per_s)


@dataclass(frozen=True)
class Granite(Family):
    """Granite Speech: an instruction after the audio token, in the checkpoint's own chat template."""

    transcribe: str = "can you transcribe the speech into a written format?"
    transcribe_keywords: str = "can you transcribe the speech into a written format?"
    transcribe_punctuated: str | None = None
    translate: str = "translate the speech to {language}"
    system: str | None = None
    separator: str = ""  # between the audio token and the instruction

    def prompt(self, options: Options, tokenizer: ChatTokenizer) -> str:
        content = f"{AUDIO_TOKEN}{self.separator}{self.instruction(options)}"
        chat = [{"role": "user", "content": content}]
        if self.system is not None:
            chat.insert(0, {"role": "system", "content": self.system})
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    def instruction(self, options: Options) -> str:
        """The instruction, without audio token and chat template."""
        if options.task == "translate":
            assert options.target_language is not None  # validated by Options
            instruction = self.translate.format(language=LANGUAGE_NAMES[options.target_language])
            if options.punctuation:
                instruction += " with proper punctuation and capitalization."
        elif options.punctuation:
            assert self.transcribe_punctuated is not None  # checked by check
            instruction = self.transcribe_punctuated
        elif options.keywords:
            instruction = self.transcribe_keywords
        else:
            instruction = self.transcribe
        if options.keywords:
            period = "" if instruction.endswith((".", "?")) else "."
            instruction += f"{period} Keywords: {', '.join(options.keywords)}"
        return instruction


@dataclass(frozen=True)
class GranitePlus(Granite):
    """Granite 4.1 plus: its output may have tags of speakers (``speech.models.tags``)."""

    attribute_speakers: str = (
        "Speaker attribution: Transcribe and denote who is speaking by adding [Speaker 1]: "
        "and [Speaker 2]: tags before speaker turns."
    )

    def check(self, options: Options) -> None:
        super().check(options)
        if options.keywords and options.speaker_tags:
            raise RequestError("unsupported_option", f"{self.name} takes no keywords with speaker tags")

    def instruction(self, options: Options) -> str:
        if options.speaker_tags:
            return self.attribute_speakers
        return super().instruction(options)


@dataclass(frozen=True)
class Whisper(Family):
    """Whisper: special tokens set language and task; keywords are given as the text of the previous window.

    It detects the language by the token that it expects after ``<|startoftranscript|>`` (the paper, section 2.3).
    """

    def prompt(self, options: Options, tokenizer: ChatTokenizer) -> str:
        previous = f"<|startofprev|> {', '.join(options.keywords)}" if options.keywords else ""
        task = options.task
        return f"{previous}<|startoftranscript|><|{options.language}|><|{task}|><|notimestamps|>"


@dataclass(frozen=True)
class EncoderOnly(Family):
    """An encoder with a CTC head or a transducer's: it writes what it hears, whatever else is asked."""

    translations: frozenset[tuple[str, str]] = frozenset()
    capabilities: frozenset[Capability] = frozenset({"word_timestamps"})
    clip_s: float = 30.0

    def prompt(self, options: Options, tokenizer: ChatTokenizer) -> str:
        return ""


_GRANITE_LANGUAGES = frozenset({"en", "fr", "de", "es", "pt"})
_GRANITE_TRANSLATIONS = frozenset(
    pair for other in ("fr", "de", "es", "pt", "ja") for pair in ((other, "en"), ("en", other))
) | {("en", "it"), ("en", "zh")}

GRANITE_4_0 = Granite(
    name="Granite 4.0 Speech",
    model_type="granite_speech",
    languages=_GRANITE_LANGUAGES | {"ja"},
    translations=_GRANITE_TRANSLATIONS,
    capabilities=frozenset({"keywords", "word_timestamps"}),
    clip_s=30.0,
)
GRANITE_4_1 = Granite(
    name="Granite Speech 4.1",
    model_type="granite_speech",
    languages=_GRANITE_LANGUAGES | {"ja"},
    translations=_GRANITE_TRANSLATIONS,
    capabilities=frozenset({"keywords", "punctuation", "word_timestamps"}),
    clip_s=30.0,
    transcribe_keywords="transcribe the speech to text.",
    transcribe_punctuated="transcribe the speech with proper punctuation and capitalization.",
)
GRANITE_4_1_PLUS = GranitePlus(
    name="Granite Speech 4.1 plus",
    model_type="granite_speech_plus",
    languages=_GRANITE_LANGUAGES,
    translations=frozenset(),
    capabilities=frozenset({"keywords", "word_timestamps", "speaker_tags"}),
    clip_s=30.0,
    # As in training; the dates are part of it and must not be replaced by today's.
    system="Knowledge Cutoff Date: April 2024.\nToday's Date: December 19, 2024.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant",
    separator=" ",
)
_WHISPER_LANGUAGES = frozenset(
    "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy "
    "id is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru "
    "sa sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo zh".split()
)
_NO_WORD_TIMES: Mapping[Capability, str] = {
    "word_timestamps": " (they come from its cross-attention, which vLLM does not return)"
}
WHISPER = Whisper(
    name="Whisper",
    model_type="whisper",
    languages=_WHISPER_LANGUAGES,
    translations=frozenset((source, "en") for source in _WHISPER_LANGUAGES - {"en"}),
    capabilities=frozenset({"keywords", "punctuation"}),
    clip_s=30.0,
    detects_language=True,
    reasons=_NO_WORD_TIMES,
)
WHISPER_ENGLISH = Whisper(
    name="Whisper (English only)",
    model_type="whisper",
    languages=frozenset({"en"}),
    translations=frozenset(),
    capabilities=frozenset({"keywords", "punctuation"}),
    clip_s=30.0,
    reasons=_NO_WORD_TIMES,
)
# Its labels are characters up to Latin Extended-A: no Japanese (``speech.granite.ctc``).
GRANITE_CTC = EncoderOnly(name="Granite Speech's CTC head", model_type="granite_speech", languages=_GRANITE_LANGUAGES)
GRANITE_TURBO_CTC = EncoderOnly(
    name="Granite Speech 5.0 TurboCTC", model_type="granite_speech5_ctc", languages=frozenset({"en"})
)
PARAKEET_CTC = EncoderOnly(name="Parakeet CTC", model_type="parakeet_ctc", languages=frozenset({"en"}))
PARAKEET_TDT = EncoderOnly(name="Parakeet TDT", model_type="parakeet_tdt", languages=frozenset({"en"}))
PARAKEET_TDT_V3 = EncoderOnly(
    name="Parakeet TDT v3",
    model_type="parakeet_tdt",
    languages=frozenset("bg cs da de el en es et fi fr hr hu it lt lv mt nl pl pt ro ru sk sl sv uk".split()),
    capabilities=frozenset({"punctuation", "word_timestamps"}),
)


def without_ctc(family: Granite) -> Granite:
    """The family in an engine that does not return what the encoder's CTC head reads."""
    return replace(
        family,
        capabilities=family.capabilities - {"word_timestamps"},
        reasons={"word_timestamps": " in llama.cpp, which does not return the CTC posteriors that they come from"},
    )


DEFAULT_MODEL = "ibm-granite/granite-4.0-1b-speech"


def _listed(words: object) -> str:
    return ", ".join(sorted(words))  # type: ignore[call-overload]
