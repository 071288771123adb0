"""The encoder engine: models that are an encoder alone, without a language model, in batches of one forward pass.

What they lack, translation, keywords and drafts, is refused before a run (``speech.models.families.EncoderOnly``,
``speech.engines.speculation``).
"""

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.engines.batching import Batching, ClipEncoder
from speech.engines.dtype import cpu_dtype
from speech.errors import EngineError, UsageError
from speech.models.families import Family

if TYPE_CHECKING:
    import torch

    from speech.engines.encoders import EncodedText


class EncoderEngine:
    """One model in this process, which encodes in a thread. Used from one event loop."""

    def __init__(self, config: EngineConfig, family: Family) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._batching = Batching(_encoder(config, family, device))
        except (ValueError, OSError) as error:
            raise UsageError("bad_model", f"{config.model!r} cannot be loaded: {error}") from error

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        try:
            encoded = await self._batching.encode(clip)
        except (ValueError, RuntimeError) as error:
            raise EngineError(
                "engine_refused", f"a clip of {clip.seconds:.1f} s could not be encoded: {error}"
            ) from error
        if not clip.options.word_timestamps:
            return encoded.result
        return replace(encoded.result, words=await asyncio.to_thread(encoded.words))

    async def check_health(self) -> None:
        """Always healthy: the engine is in this process."""

    def stop(self) -> None:
        del self._batching


def _encoder(config: EngineConfig, family: Family, device: "torch.device") -> ClipEncoder["EncodedText"]:
    import torch
    from transformers import AutoConfig

    from speech.engines.encoders import CtcEncoder, GraniteCtcEncoder, TransducerEncoder

    asked = config.dtype if device.type == "cuda" else cpu_dtype(config.dtype)
    own = AutoConfig.from_pretrained(config.model).dtype or torch.float32
    dtype = own if asked == "auto" else getattr(torch, asked)
    if family.model_type == "granite_speech":
        return GraniteCtcEncoder(config.model, device, dtype)
    if family.model_type == "parakeet_tdt":
        return TransducerEncoder(config.model, device, dtype)
    return CtcEncoder(config.model, device, dtype)
