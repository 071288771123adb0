"""The llama.cpp engine: Granite Speech from GGUF files, on CPUs of any kind, laptops included.

llama.cpp's server runs in this process (``xllamacpp``), with continuous batching in its decoder; it encodes audio a
clip at a time. It speaks OpenAI's chat: the audio comes before the instruction, as in Granite's training. (llama.cpp's
own route for transcriptions sends the instruction first, which the model answers otherwise.)
"""

import asyncio
import base64
import io
import os
import secrets
import wave
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.errors import EngineError, UsageError
from speech.models.families import Family, Granite
from speech.models.gguf import GgufFolder
from speech.transcript import Usage

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


def chat_request(family: Granite, clip: ClipRequest) -> dict[str, Any]:
    """The request of OpenAI's chat, as llama.cpp's server takes it, for the text of a clip."""
    options = clip.options
    system = [{"role": "system", "content": family.system}] if family.system is not None else []
    content = [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(_wav(clip)).decode(), "format": "wav"}},
        {"type": "text", "text": family.separator + family.instruction(options)},
    ]
    return {
        "messages": [*system, {"role": "user", "content": content}],
        "max_tokens": family.max_tokens(clip.seconds),
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 1,
        "cache_prompt": False,
    }


def chat_result(answer: dict[str, Any], audio_tokens: int) -> DecodingResult:
    """What an answer of OpenAI's chat says."""
    [choice] = answer["choices"]
    tokens = (choice.get("logprobs") or {}).get("content") or []
    logprobs = [token["logprob"] for token in tokens]
    usage = answer["usage"]
    return DecodingResult(
        text=choice["message"]["content"].strip(),
        token_ids=tuple(token["id"] for token in tokens),
        avg_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
        complete=choice["finish_reason"] == "stop",
        usage=Usage(
            audio_tokens=audio_tokens,
            prompt_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
        ),
    )


def _wav(clip: ClipRequest) -> bytes:
    """A clip as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(clip.samples.tobytes())
    return file.getvalue()


def _refused(clip: ClipRequest, reason: str) -> EngineError:
    return EngineError("engine_refused", f"llama.cpp could not decode a clip of {clip.seconds:.1f} s: {reason}")
