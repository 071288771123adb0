"""The llama.cpp engine: Granite Speech from GGUF files, on CPUs of any kind, laptops included.

llama.cpp's server runs in this process (``xllamacpp``), with continuous batching in its decoder; it encodes audio a
clip at a time.
"""

import asyncio
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.engines.chat import chat_request, chat_result
from speech.errors import EngineError, UsageError
from speech.models.families import Family, Granite
from speech.models.gguf import GgufFolder

# Clips decoded together, at most: on a CPU more gain little, and each has a KV cache of its own.
MAX_SLOTS = 8
# Tokens of a clip: 300 of 30 s of audio, the prompt with its keywords, and ``Family.max_tokens`` of text.
CONTEXT_TOKENS = 2048


class LlamaCppEngine:
    """One model in this process, on threads of its own."""

    def __init__(self, config: EngineConfig, family: Family) -> None:
        # OpenMP's threads would otherwise spin at every barrier: with other load on two cores, 20 times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import xllamacpp

        assert isinstance(family, Granite)  # no other has a folder of GGUF files (speech.models.checkpoint)
        self._family = family
        self._folder = GgufFolder(config.model)
        slots = min(config.concurrent_clips, MAX_SLOTS)
        try:
            self._server = xllamacpp.Server(self._parameters(xllamacpp.CommonParams(), slots))
        except (RuntimeError, ValueError) as error:
            raise UsageError("bad_model", f"llama.cpp cannot load {config.model!r}: {error}") from error
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="llamacpp")

    def _parameters(self, parameters: Any, slots: int) -> Any:
        threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        parameters.model.path = str(self._folder.language_model)
        parameters.mmproj.path = str(self._folder.mmproj)
        parameters.n_parallel = slots
        parameters.n_ctx = slots * CONTEXT_TOKENS
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.cache_ram_mib = 0  # no two clips share a prefix worth caching: the audio comes first
        parameters.warmup = False  # Transcriber.warm_up decodes a clip
        parameters.verbosity = 0
        # The server in it listens on a port of this machine: nobody has its key.
        parameters.api_keys = [secrets.token_hex()]
        return parameters

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        request = chat_request(self._family, clip)
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._threads, self._server.handle_chat_completions, request)
        except RuntimeError as error:
            raise _refused(clip, str(error)) from error
        if "error" in answer:
            raise _refused(clip, answer["error"]["message"])
        return chat_result(answer, self._folder.audio_tokens(len(clip.samples)))

    async def check_health(self) -> None:
        """Always healthy: the engine is in this process."""

    def stop(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        del self._server


def _refused(clip: ClipRequest, reason: str) -> EngineError:
    return EngineError("engine_refused", f"llama.cpp could not decode a clip of {clip.seconds:.1f} s: {reason}")
