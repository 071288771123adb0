"""The seam between us and a model: one clip of speech in, its text out.

An engine knows audio and tokens, and nothing of recordings, channels or files. Two implement it:
``engine_vllm`` (continuous batching, GPU or CPU) and ``engine_transformers`` (the reference, and for
CPUs without vLLM). At float32 the two give the same tokens; a test holds them to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from speech.audio import SAMPLE_RATE
from speech.engines.speculation import Speculation, method_for
from speech.errors import UsageError
from speech.models.families import DEFAULT_MODEL, Family
from speech.recording import Options
from speech.transcript import Usage

if TYPE_CHECKING:
    import numpy as np


class EngineConfig(BaseModel):
    """How an engine is started."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(DEFAULT_MODEL, description="hub id or folder of the checkpoint")
    engine: Literal["vllm", "transformers"] = Field("vllm", description="what runs the model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="weights and arithmetic; auto: the checkpoint's own on a GPU, float32 on a CPU"
    )
    concurrent_clips: int = Field(64, ge=1, description="clips decoded at once by one engine")
    speculation: Speculation = Field(
        "auto",
        description="drafts that the model verifies, for speed; the text stays the same. ctc: what Granite's encoder "
        "reads; ngram: repetitions; draft: what a small language model would say (draft_model); auto: ctc, as far as "
        "it pays. ctc-accept changes words: it takes what the encoder reads where that is likely enough",
    )
    accept_entropy: float = Field(
        0.7, ge=0, description="ctc-accept: a clip none of whose frames has a higher entropy (nats) is taken as read"
    )
    accept_probability: float = Field(
        0.2, ge=0, le=1, description="ctc-accept: else, a word piece to which the model gives so much is taken"
    )
    draft_model: str | None = Field(
        None, description="draft: hub id or folder of a text model with the vocabulary of the model's own"
    )
    draft_tokens: int | None = Field(
        None, ge=1, le=128, description="tokens of a draft verified at once, at most (default: by the way of drafting)"
    )
    kv_cache_gb: float = Field(1.0, gt=0, description="memory for the KV cache on a CPU, in GiB")
    clip_timeout_s: float = Field(
        600.0, gt=0, description="an engine that takes longer over one clip, in seconds, is started anew"
    )
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory that one engine takes")


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
    """What an engine made of one clip."""

    text: str
    token_ids: tuple[int, ...]
    avg_logprob: float | None
    complete: bool  # False: cut off at the token limit
    usage: Usage = field(default_factory=Usage)
    flags: tuple[str, ...] = ()  # how it was made, where not by the model alone: ctc_text, ctc_words (ctc-accept)


class Engine(Protocol):
    """Decodes clips, many at a time, greedily."""

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        """Decodes one clip; concurrent calls share the engine's batch.

        Raises:
            RequestError: what is asked cannot be done in the way that the engine drafts.
            EngineError: this clip failed and the engine goes on.
            EngineDied: the engine is gone and the process that holds it should exit.
        """

    async def check_health(self) -> None:
        """Returns if the engine can take work; raises EngineDied otherwise."""

    def stop(self) -> None:
        """Ends the engine's processes and frees its memory."""


EngineStarter = Callable[[EngineConfig, Family], Engine]


def start_engine(config: EngineConfig, family: Family) -> Engine:
    """Loads the model and returns an engine ready for work.

    Raises:
        UsageError: ``bad_engine`` where the engine's package is not installed, ``bad_model`` where the
            checkpoint cannot be loaded, ``bad_option`` where it cannot draft as asked.
    """
    method_for(config.speculation, family, config.engine, config.draft_model)
    try:
        if config.engine == "vllm":
            from speech.engines.vllm import VllmEngine

            return VllmEngine(config, family)
        from speech.engines.transformers import TransformersEngine

        return TransformersEngine(config, family)
    except ModuleNotFoundError as error:
        raise UsageError(
            "bad_engine", f"the {config.engine} engine needs a package that is not installed ({error.name})"
        ) from error
