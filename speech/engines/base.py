"""The interface of an engine: one clip of speech in, its text out.

An engine handles audio and tokens, and no recordings, channels or files. ``speech.engines.vllm`` (continuous batching,
GPU or CPU) and ``speech.engines.transformers`` (the reference, and for CPUs without vLLM) run models with a language
model; at float32 both output the same tokens, which a test asserts. ``speech.engines.llamacpp`` runs GGUF files of
Granite Speech, ``speech.engines.http`` is a client of a server that does, ``speech.engines.encoder`` runs encoders
alone.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from speech.audio import SAMPLE_RATE
from speech.engines.dtype import Dtype
from speech.engines.speculation import Speculation, method_for
from speech.errors import UsageError
from speech.models.families import DEFAULT_MODEL, Family
from speech.recording import Options
from speech.transcript import Usage, Word

if TYPE_CHECKING:
    import numpy as np


EngineName = Literal["vllm", "transformers", "encoder", "llamacpp", "http"]
# Holds the API key of the server at --url. Not OPENAI_API_KEY, the key of a paid service in many a shell, which would
# be sent to whatever server --url names.
URL_KEY_VARIABLE = "RAYSCRIBE_URL_API_KEY"


def _url_key() -> SecretStr | None:
    key = os.environ.get(URL_KEY_VARIABLE, "").strip()
    return SecretStr(key) if key else None


class EngineConfig(BaseModel):
    """Settings of an engine.

    The key of the server at ``url`` is read where the settings are made, and travels with them to actors on other
    machines. It is private: no flag, no file of settings, no dump and no repr has it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = Field(DEFAULT_MODEL, description="hub id or folder of the checkpoint")
    engine: EngineName = Field(
        "vllm",
        description="the inference engine that runs the model. encoder: models that are an encoder alone (TurboCTC, "
        "Parakeet), and Granite's encoder without its language model; llamacpp: a folder of GGUF files; "
        "http: a running llama-server or Ollama, at --url",
    )
    url: str | None = Field(
        None, pattern="^https?://", description="with --engine http: address of the server, as http://localhost:8080"
    )
    dtype: Dtype = Field(
        "auto", description="weights and arithmetic; auto: the checkpoint's own on a GPU, float32 on a CPU"
    )
    concurrent_clips: int = Field(64, ge=1, description="clips decoded at once by one engine")
    speculation: Speculation = Field(
        "auto",
        description="speculative decoding: drafts that the model verifies, for speed; the text stays the same. ctc: "
        "the CTC hypothesis of Granite's encoder; ngram: repetitions; "
        "auto: ctc, as much as pays",
    )
    draft_tokens: int | None = Field(
        None, ge=1, le=128, description="draft tokens verified at once, at most (default: by the method of drafting)"
    )
    kv_cache_gb: float = Field(1.0, gt=0, description="memory for the KV cache on a CPU, in GiB")
    gpu_memory: float = Field(
        0.9,
        gt=0,
        le=1,
        description="share of a GPU's memory that vLLM reserves for one engine; Granite's audio encoder is in the rest",
    )
    engine_start_timeout_s: float = Field(
        1800.0, gt=0, description="seconds for an engine to start, a download of the model included"
    )
    clip_timeout_s: float = Field(
        600.0, gt=0, description="seconds for one clip; an engine that takes longer is restarted"
    )
    _url_key: SecretStr | None = PrivateAttr(default_factory=_url_key)

    @property
    def url_key(self) -> str | None:
        """The API key of the server at ``url``; None: it wants none."""
        return self._url_key.get_secret_value() if self._url_key else None


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """One clip to decode. ``samples``: int16 mono at 16 kHz, shape (n,)."""

    samples: "np.ndarray"
    options: Options
    id: str  # RECORDING_ID/NUMBER, unique among the clips in flight

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def recording_id(self) -> str:
        """The recording that the clip is part of."""
        return self.id.rpartition("/")[0]

    def waveform(self) -> "np.ndarray":
        """float32 in [-1, 1), shape (n,)."""
        return self.samples.astype("float32") / 32768.0


@dataclass(frozen=True, slots=True)
class DecodingResult:
    """The output of an engine for one clip."""

    text: str
    token_ids: tuple[int, ...]
    avg_logprob: float | None  # mean natural-log probability of the tokens, where known
    complete: bool  # False: stopped at the token limit
    usage: Usage = field(default_factory=Usage)
    hypothesis: str | None = None  # the words that the encoder's CTC head heard; None: the engine has none
    words: tuple[Word, ...] = ()  # with word_timestamps; times from the start of the clip


class Engine(Protocol):
    """Decodes clips, many at a time, greedily."""

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        """Decodes one clip; concurrent calls share the engine's batch.

        Raises:
            RequestError: the engine's speculation cannot serve these options.
            EngineError: this clip failed; the engine still works.
            EngineDied: the engine is dead, and the process that holds it should exit.
        """

    async def check_health(self) -> None:
        """Returns if the engine can decode; raises EngineDied otherwise."""

    def stop(self) -> None:
        """Ends the engine's processes and frees its memory."""


@runtime_checkable
class LanguageDetector(Protocol):
    """What an engine also is whose model detects the language (``Family.detects_language``)."""

    async def language_logprobs(self, clip: ClipRequest) -> dict[str, float]:
        """The natural-log probability of each language of the model to be that of the clip; together they are 1.

        Raises:
            EngineError, EngineDied: as of ``Engine.decode``.
        """


EngineStarter = Callable[[EngineConfig, Family], Engine]


def start_engine(config: EngineConfig, family: Family) -> Engine:
    """Loads the model and returns a running engine.

    Raises:
        UsageError: ``bad_engine`` where the engine's package is not installed, ``bad_model`` where the
            checkpoint cannot be loaded, ``bad_option`` where the speculation asked for is not available.
    """
    method_for(config.speculation, family, config.engine)
    try:
        if config.engine == "vllm":
            from speech.engines.vllm import VllmEngine

            return VllmEngine(config, family)
        if config.engine == "encoder":
            from speech.engines.encoder import EncoderEngine

            return EncoderEngine(config, family)
        if config.engine == "llamacpp":
            from speech.engines.llamacpp import LlamaCppEngine

            return LlamaCppEngine(config, family)
        if config.engine == "http":
            from speech.engines.http import HttpEngine

            return HttpEngine(config, family)
        from speech.engines.transformers import TransformersEngine

        return TransformersEngine(config, family)
    except ImportError as error:
        missing = error.name or " ".join(str(error).split())
        raise UsageError(
            "bad_engine", f"the {config.engine} engine needs a package that is not installed ({missing}): make setup"
        ) from error
