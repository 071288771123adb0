"""The vLLM engine: continuous batching of clips from any number of recordings.

Prompts are built from ``speech.models.families`` and not by vLLM's transcription route, which drops
keywords. Audio goes in as an array, decoded by the Listener, so that no engine process spends its
time on codecs.

vLLM runs in a process of its own (``AsyncLLM``): the caller's event loop only passes messages.
"""

import asyncio
import itertools
import os
from typing import Any

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.engines.speculation import DRAFT_TOKENS, check_speculation, ctc_can_help, method_for
from speech.errors import EngineDied, EngineError, UsageError
from speech.granite import plugin
from speech.models.families import AUDIO_TOKEN, Family, Whisper
from speech.tracing import trace_headers, traces_endpoint
from speech.transcript import Usage

# Set before vLLM is imported, where the user has not set them.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # no telemetry unless the user asks for it
    "VLLM_LOGGING_LEVEL": "WARNING",
    # By default vLLM binds its threads to all cores of the node, also those of other actors.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
GIB = 1 << 30
# Flags of texts made by ctc-accept: the CTC hypothesis, whole; with words of it that were not the model's first choice.
CTC_TEXT, CTC_WORDS = "ctc_text", "ctc_words"


class VllmEngine:
    """One model in one vLLM engine. Built on any thread; used from one event loop."""

    def __init__(self, config: EngineConfig, family: Family) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import AsyncEngineArgs, AsyncLLMEngine
        from vllm.platforms import current_platform

        self._family = family
        self._speculation = config.speculation
        self._method = method_for(config.speculation, family, "vllm", config.draft_model)
        self._adaptive = config.speculation == "auto"
        self._accept = (
            [config.accept_entropy, config.accept_probability] if config.speculation == "ctc-accept" else None
        )
        arguments = self._arguments(config, on_cpu=current_platform.is_cpu())
        try:
            with plugin.enabled():
                self._llm = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**arguments))
        except (ValueError, OSError) as error:
            raise UsageError("bad_model", f"vLLM cannot load {config.model!r}: {error}") from error
        self._tokenizer = self._llm.get_tokenizer()
        self._prepared: asyncio.Future[None] | None = None
        self._audio_keys = map(str, itertools.count())

    def _arguments(self, config: EngineConfig, on_cpu: bool) -> dict[str, Any]:
        """vLLM's engine arguments."""
        arguments: dict[str, Any] = {
            "model": config.model,
            "dtype": "float32" if config.dtype == "auto" and on_cpu else config.dtype,
            "max_num_seqs": config.concurrent_clips,
            "seed": 0,
            # No two clips share a prefix worth caching: the audio comes first.
            "enable_prefix_caching": False,
            "mm_processor_cache_gb": 0,
            # Memory is profiled with clips of our limit, not vLLM's 500 seconds.
            "limit_mm_per_prompt": {"audio": {"count": 1, "length": int(self._family.clip_s * SAMPLE_RATE)}},
            "enable_log_requests": False,  # prompts hold keywords, outputs hold transcripts
            "otlp_traces_endpoint": traces_endpoint(),
        }
        if on_cpu:
            arguments |= {
                "kv_cache_memory_bytes": int(config.kv_cache_gb * GIB),
                "enforce_eager": True,
                # The worker in the engine's own process, as on a GPU. On CPUs vLLM starts a process for it, to bind its
                # threads to cores, which "nobind" forgoes: this saves an import, and messages at every step.
                "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
            }
        else:
            arguments |= {"gpu_memory_utilization": config.gpu_memory}
        return arguments | self._speculative_arguments(config)

    def _speculative_arguments(self, config: EngineConfig) -> dict[str, Any]:
        """vLLM's engine arguments for speculative decoding."""
        if self._method is None:
            return {}
        methods: dict[str, dict[str, Any]] = {
            "ctc": {"method": "custom_class", "model": "speech.granite.drafter.CtcDrafter"},
            "ngram": {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2},
            "draft": {"method": "draft_model", "model": config.draft_model},
        }
        extension = {"worker_extension_cls": "speech.granite.drafter.DrafterBinding"} if self._method == "ctc" else {}
        return {
            "speculative_config": methods[self._method]
            | {"num_speculative_tokens": config.draft_tokens or DRAFT_TOKENS[self._method]},
            "per_request_spec_decode_metrics": "summary",
            **extension,
        }

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        check_speculation(self._speculation, clip.options)  # also for callers that skip speech.preflight
        output = await self._generate(clip)
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise EngineError(
                "engine_aborted", f"vLLM ended a clip of {clip.seconds:.1f} s: {completion.finish_reason}"
            )
        tokens, prompt = tuple(completion.token_ids), output.prompt_token_ids or []
        metrics = completion.spec_decode_metrics
        drafted = metrics.num_draft_tokens if metrics else 0
        accepted = sum(count * steps for count, steps in enumerate(metrics.histogram)) if metrics else 0
        logprob = completion.cumulative_logprob
        flags = _ctc_flags(completion) if self._accept else ()
        if CTC_TEXT in flags:
            drafted = accepted = len(tokens) - 1  # all but the end-of-text token, which is not of the hypothesis
            logprob = None
        return DecodingResult(
            text=completion.text.strip(),
            token_ids=tokens,
            avg_logprob=logprob / len(tokens) if logprob is not None and tokens else None,
            complete=completion.finish_reason == "stop",
            flags=flags,
            usage=Usage(
                audio_tokens=prompt.count(self._audio_token_id),
                prompt_tokens=len(prompt),
                output_tokens=len(tokens),
                draft_tokens=drafted,
                accepted_draft_tokens=accepted,
            ),
        )

    async def _generate(self, clip: ClipRequest) -> Any:
        """vLLM's final output for a clip."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        output = None
        try:
            await self._prepare()
            async for partial in self._llm.generate(
                self._prompt(clip), self._sampling(clip), request_id=clip.id, trace_headers=trace_headers()
            ):
                output = partial
        except EngineDeadError as error:
            raise EngineDied("engine_died", f"the vLLM engine has died: {error}") from error
        except (EngineGenerateError, VLLMClientError, ValueError) as error:
            raise EngineError(
                "engine_refused", f"vLLM could not decode a clip of {clip.seconds:.1f} s: {error}"
            ) from error
        assert output is not None  # generate yields at least the final output
        return output

    async def _prepare(self) -> None:
        """Binds the CTC drafter to vLLM's model runner, once.

        Not done in the constructor: AsyncLLM's calls belong to an event loop.
        """
        if self._method != "ctc":
            return
        if self._prepared is None:
            self._prepared = asyncio.ensure_future(self._bind_drafter())
        await asyncio.shield(self._prepared)  # the cancellation of one clip must not cancel it for the others

    async def _bind_drafter(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            bound = await self._llm.collective_rpc("bind_drafter", args=(self._adaptive, self._accept is not None))
        except EngineDeadError:
            raise
        except Exception as error:  # vLLM passes on a worker's exception as a bare Exception with its text
            raise UsageError("bad_engine", f"the CTC drafter cannot be bound: {error}") from error
        if not any(bound):
            raise UsageError("bad_engine", "no worker of vLLM has the CTC drafter: give --speculation off")

    def _sampling(self, clip: ClipRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        draft: dict[str, Any] = {}  # read by speech.granite.drafter
        if self._method == "ctc" and ctc_can_help(clip.options):
            draft["draft"] = "ctc"
            if self._accept:
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
        # A key of our own saves vLLM the hashing of the waveform. It is the key in the encoder cache, whose entries
        # outlive the request: no two clips may share one.
        return {"prompt": text, "multi_modal_data": audio, "multi_modal_uuids": {"audio": [next(self._audio_keys)]}}

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


def _ctc_flags(completion: Any) -> tuple[str, ...]:
    """Flags of a text that is not, or may not be, the model's own greedy output.

    By the ranks that ``speech.granite.acceptance`` reports: above 1 for a token that was not the model's first choice,
    0 (``UNVERIFIED_RANK``) for one that was accepted unverified.
    """
    tokens = zip(completion.token_ids, completion.logprobs or [], strict=False)
    ranks = {candidates[token].rank for token, candidates in tokens}
    if 0 in ranks:
        return (CTC_TEXT,)
    return (CTC_WORDS,) if ranks - {1} else ()
