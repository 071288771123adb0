"""The vLLM engine: continuous batching of clips from any number of recordings.

Prompts are built here from ``speech.models`` and not by vLLM's transcription route, which drops
keywords. Audio goes in as an array, decoded by the Listener, so that no engine process spends its
time on codecs.

vLLM runs in processes of its own (``AsyncLLM``): the caller's event loop only passes messages.
"""

import asyncio
import os
from typing import Any

from speech.engine import SAMPLE_RATE, ClipRequest, Decoding, EngineConfig
from speech.errors import EngineDied, EngineError, UsageError
from speech.models import AUDIO_TOKEN, Family, Whisper
from speech.speculation import ctc_can_help, may_be_relaxed, method_for
from speech.transcript import Usage

# Set before vLLM is imported, and only where the user has not.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # no telemetry unless the user asks for it
    "VLLM_LOGGING_LEVEL": "WARNING",
    # vLLM would pin itself to every core of the node, unaware of the other actors there.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
GIB = 1 << 30


class VllmEngine:
    """One model in one vLLM engine. Built on any thread; used from one event loop."""

    def __init__(self, config: EngineConfig, family: Family) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import AsyncEngineArgs, AsyncLLMEngine
        from vllm.platforms import current_platform

        self._family = family
        self._method = method_for(config.speculation, family, "vllm")
        self._adaptive = config.speculation == "auto"
        self._accept = (
            [config.accept_entropy, config.accept_probability] if config.speculation == "ctc-accept" else None
        )
        arguments = self._arguments(config, on_cpu=current_platform.is_cpu())
        try:
            self._llm = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**arguments))
        except (ValueError, OSError) as error:
            raise UsageError("bad_model", f"vLLM cannot load {config.model!r}: {error}") from error
        self._tokenizer = self._llm.get_tokenizer()
        self._prepared: asyncio.Future[None] | None = None

    def _arguments(self, config: EngineConfig, on_cpu: bool) -> dict[str, Any]:
        """How vLLM is started."""
        arguments: dict[str, Any] = {
            "model": config.model,
            "dtype": "float32" if config.dtype == "auto" and on_cpu else config.dtype,
            "max_num_seqs": config.concurrent_clips,
            "seed": 0,
            # No two clips share a prefix worth keeping: the audio comes first.
            "enable_prefix_caching": False,
            "mm_processor_cache_gb": 0,
            # Memory is profiled with clips of our limit, not vLLM's 500 seconds.
            "limit_mm_per_prompt": {"audio": {"count": 1, "length": int(self._family.clip_s * SAMPLE_RATE)}},
            "enable_log_requests": False,  # prompts hold keywords, outputs hold what customers said
        }
        if on_cpu:
            arguments |= {"kv_cache_memory_bytes": int(config.kv_cache_gb * GIB), "enforce_eager": True}
        else:
            arguments |= {"gpu_memory_utilization": config.gpu_memory}
        return arguments | self._speculation(config)

    def _speculation(self, config: EngineConfig) -> dict[str, Any]:
        """vLLM's arguments for drafts."""
        if self._method is None:
            return {}
        speculative = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2}
        extension = {}
        if self._method == "ctc":
            speculative = {"method": "custom_class", "model": "speech.granite.drafter.CtcDrafter"}
            extension = {"worker_extension_cls": "speech.granite.drafter.DrafterBinding"}
        return {
            "speculative_config": speculative | {"num_speculative_tokens": config.draft_tokens},
            "per_request_spec_decode_metrics": "summary",
            **extension,
        }

    async def decode(self, clip: ClipRequest) -> Decoding:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        output = None
        try:
            await self._prepare()
            async for partial in self._llm.generate(self._prompt(clip), self._sampling(clip), request_id=clip.id):
                output = partial
        except EngineDeadError as error:
            raise EngineDied("engine_died", f"the vLLM engine has died: {error}") from error
        except (EngineGenerateError, VLLMClientError, ValueError) as error:
            raise EngineError(
                "engine_refused", f"vLLM could not decode a clip of {clip.seconds:.1f} s: {error}"
            ) from error
        assert output is not None  # generate yields at least the final output
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise EngineError(
                "engine_aborted", f"vLLM ended a clip of {clip.seconds:.1f} s: {completion.finish_reason}"
            )
        tokens, prompt = tuple(completion.token_ids), output.prompt_token_ids or []
        logprob, drafts = completion.cumulative_logprob, completion.spec_decode_metrics
        return Decoding(
            text=completion.text.strip(),
            token_ids=tokens,
            avg_logprob=logprob / len(tokens) if logprob is not None and tokens else None,
            complete=completion.finish_reason == "stop",
            flags=("ctc_words",) if self._accept and not _greedy(completion) else (),
            usage=Usage(
                audio_tokens=prompt.count(self._audio_token_id),
                prompt_tokens=len(prompt),
                output_tokens=len(tokens),
                draft_tokens=drafts.num_draft_tokens if drafts else 0,
                accepted_draft_tokens=sum(many * times for many, times in enumerate(drafts.histogram)) if drafts else 0,
            ),
        )

    async def _prepare(self) -> None:
        """Introduces drafter and model runner to each other, once.

        Not done when the engine is built: what is sent to vLLM's processes belongs to an event loop.
        """
        if self._method != "ctc":
            return
        if self._prepared is None:
            binding = self._llm.collective_rpc("bind_drafter", args=(self._adaptive, self._accept is not None))
            self._prepared = asyncio.ensure_future(binding)
        await asyncio.shield(self._prepared)  # one clip given up must not leave the others waiting

    def _sampling(self, clip: ClipRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        draft: dict[str, Any] = {}  # read by speech.granite.drafter
        if self._method == "ctc" and ctc_can_help(clip.options):
            draft["draft"] = "ctc"
            if self._accept and may_be_relaxed(clip.options):
                draft["accept"] = self._accept
        return SamplingParams(
            temperature=0.0,
            max_tokens=self._family.max_tokens(clip.seconds),
            logprobs=0,  # of the chosen token alone
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=draft or None,
        )

    def _prompt(self, clip: ClipRequest) -> Any:
        text = self._family.prompt(clip.options, self._tokenizer)
        audio = {"audio": (clip.waveform(), SAMPLE_RATE)}
        if isinstance(self._family, Whisper):  # an encoder-decoder: the audio is the encoder's whole prompt
            return {"encoder_prompt": {"prompt": "", "multi_modal_data": audio}, "decoder_prompt": {"prompt": text}}
        # A name of our own spares vLLM the hashing of the waveform.
        return {"prompt": text, "multi_modal_data": audio, "multi_modal_uuids": {"audio": [clip.id]}}

    @property
    def _audio_token_id(self) -> int:
        return self._tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)

    async def check_health(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._llm.check_health()
        except EngineDeadError as error:
            raise EngineDied("engine_died", f"the vLLM engine has died: {error}") from error

    def stop(self) -> None:
        self._llm.shutdown()


def _greedy(completion: Any) -> bool:
    """Whether every token was the model's first choice."""
    return all(
        candidates[token].rank == 1
        for token, candidates in zip(completion.token_ids, completion.logprobs or [], strict=False)
    )
