"""The vLLM engine: continuous batching of clips from any number of recordings.

Prompts are built from ``speech.models.families`` and not by vLLM's transcription route, which drops
keywords. vLLM runs in a process of its own (``AsyncLLM``): the caller's event loop only passes messages.

Granite Speech's audio is encoded in this process (``speech.granite.frontend``), and vLLM serves the language model
alone, from embeddings: the CTC reading is here before the language model has begun. Whisper, whose encoder and decoder
are one in vLLM, gets the audio as an array.
"""

import asyncio
import contextlib
import os
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.engines.dtype import cpu_dtype
from speech.engines.gpu_start import alone_on_gpu
from speech.engines.speculation import DRAFT_TOKENS, ctc_can_help, method_for
from speech.errors import EngineDied, EngineError, UsageError
from speech.granite import plugin
from speech.granite.drafts import Drafts
from speech.granite.vocabulary import Vocabulary
from speech.models.families import AUDIO_TOKEN, Family, Granite
from speech.models.languages import WHISPER_START, language_token_ids, normalised
from speech.tracing import trace_headers, traces_endpoint
from speech.transcript import Usage, Word

if TYPE_CHECKING:
    from speech.engines.batching import Batching
    from speech.granite.frontend import EncodedClip, FrontEnd

# Set before vLLM is imported, where the user has not set them.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # no telemetry unless the user asks for it
    "VLLM_LOGGING_LEVEL": "WARNING",
    # By default vLLM binds its threads to all cores of the node, also those of other actors.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
GIB = 1 << 30
# Tokens of a step on a GPU, at most. At RTFx 3,000 clips of 15 s bring 38,000 tokens of prompt a second, and 512 clips
# that get 3.5 tokens for each second of audio make 20 steps in it: vLLM's default, 2048, is less. With drafts that
# default stays, since each draft token has a row of logits, 1 MB of its vocabulary's.
STEP_TOKENS, DRAFTED_STEP_TOKENS = 8192, 2048
# CUDA graphs that vLLM captures by default, in clips (0.32; of a step that has no prompts in it).
DEFAULT_GRAPHS = 512
# How long the encoder waits for more clips while the language model has enough, by kind of device. A pass of any size
# is hundreds of kernels to launch, which take a GPU of today some 15 ms of Python: estimated, not measured.
GATHER_S = {"cuda": 0.05}


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
        self._concurrent_clips = config.concurrent_clips
        self._decoding = 0  # clips that the language model has
        on_cpu = current_platform.is_cpu()
        arguments = self._arguments(config, on_cpu)
        try:
            with contextlib.nullcontext() if on_cpu else alone_on_gpu():
                with plugin.enabled():
                    self._llm = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**arguments))
                self._front_end = self._new_front_end(config.model) if isinstance(family, Granite) else None
        except (ValueError, OSError) as error:
            raise UsageError("bad_model", f"vLLM cannot load {config.model!r}: {error}") from error
        self._tokenizer = self._llm.get_tokenizer()
        self._drafts = Drafts(self._tokenizer)
        self._prepared: asyncio.Future[None] | None = None

    def _new_front_end(self, model: str) -> "Batching[EncodedClip]":
        import torch
        from vllm.platforms import current_platform

        from speech.engines.batching import Batching

        device = torch.device(current_platform.device_type)
        try:
            front_end = self._load_front_end(model, device)
        except BaseException:
            self._llm.shutdown()
            raise
        return Batching(front_end, GATHER_S.get(device.type, 0.0), may_gather=self._has_enough_to_decode)

    def _load_front_end(self, model: str, device: Any) -> "FrontEnd":
        from speech.granite.frontend import FrontEnd

        return FrontEnd.load(model, device, self._llm.model_config.dtype)

    def _has_enough_to_decode(self) -> bool:
        return 2 * self._decoding >= self._concurrent_clips

    def _arguments(self, config: EngineConfig, on_cpu: bool) -> dict[str, Any]:
        """vLLM's engine arguments."""
        arguments: dict[str, Any] = {
            "model": config.model,
            "dtype": cpu_dtype(config.dtype) if on_cpu else config.dtype,
            "max_num_seqs": config.concurrent_clips,
            "seed": 0,
            # No two clips share a prefix worth caching: the audio comes first.
            "enable_prefix_caching": False,
            "enable_log_requests": False,  # prompts hold keywords, outputs hold transcripts
            "otlp_traces_endpoint": traces_endpoint(),
        }
        if isinstance(self._family, Granite):
            arguments |= {"language_model_only": True, "enable_prompt_embeds": True}
        else:
            # Memory is profiled with clips of our limit.
            length = int(self._family.clip_s * SAMPLE_RATE)
            arguments |= {"mm_processor_cache_gb": 0, "limit_mm_per_prompt": {"audio": {"count": 1, "length": length}}}
        if on_cpu:
            arguments |= {
                "kv_cache_memory_bytes": int(config.kv_cache_gb * GIB),
                "enforce_eager": True,
                # The worker in the engine's own process, as on a GPU. On CPUs vLLM starts a process for it, to bind its
                # threads to cores, which "nobind" forgoes: this saves an import, and messages at every step.
                "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
            }
        else:
            arguments |= self._gpu_arguments(config)
        return arguments | self._speculative_arguments(config)

    def _gpu_arguments(self, config: EngineConfig) -> dict[str, Any]:
        """vLLM's engine arguments on a GPU.

        Asynchronous scheduling is not among them: vLLM turns it on where there are no drafts, and has none with ours.
        """
        arguments: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory}
        if self._method is None:
            arguments["max_num_batched_tokens"] = max(STEP_TOKENS, config.concurrent_clips)
            if config.concurrent_clips > DEFAULT_GRAPHS:
                arguments["max_cudagraph_capture_size"] = config.concurrent_clips
        else:
            arguments["max_num_batched_tokens"] = max(DRAFTED_STEP_TOKENS, config.concurrent_clips)
        return arguments

    def _speculative_arguments(self, config: EngineConfig) -> dict[str, Any]:
        """vLLM's engine arguments for speculative decoding."""
        if self._method is None:
            return {}
        methods: dict[str, dict[str, Any]] = {
            "ctc": {"method": "custom_class", "model": "speech.granite.drafter.CtcDrafter"},
            "ngram": {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2},
        }
        extension = {"worker_extension_cls": "speech.granite.drafter.DrafterBinding"} if self._method == "ctc" else {}
        return {
            "speculative_config": methods[self._method]
            | {"num_speculative_tokens": config.draft_tokens or DRAFT_TOKENS[self._method]},
            "per_request_spec_decode_metrics": "summary",
            **extension,
        }

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        if self._front_end is None:
            prompt = self._whisper_prompt(clip, {"prompt": self._family.prompt(clip.options, self._tokenizer)})
            return self._result(clip, await self._generate(clip, prompt, self._sampling(clip, {})))
        encoded = await self._encode(self._front_end, clip)
        prompt = self._granite_prompt(clip, encoded)
        drafts = self._method == "ctc" and ctc_can_help(clip.options)
        draft = self._drafts.extra_args(encoded.hypothesis) if drafts else {}
        log_posteriors = encoded.hypothesis.log_posteriors.cpu() if clip.options.word_timestamps else None
        hypothesis, audio_tokens = encoded.hypothesis.transcript(clip.options.language), len(encoded.embeddings)
        del encoded  # of a GPU's memory, while the language model decodes
        self._decoding += 1
        try:
            output = await self._generate(clip, prompt, self._sampling(clip, draft))
        finally:
            self._decoding -= 1
        result = replace(self._result(clip, output, audio_tokens), hypothesis=hypothesis)
        if drafts:
            self._drafts.learn(result.text)
        if log_posteriors is None:
            return result
        words = await asyncio.to_thread(self._words, clip, output.outputs[0], log_posteriors)
        return replace(result, words=words)

    async def language_logprobs(self, clip: ClipRequest) -> dict[str, float]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        ids = self._language_ids
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            allowed_token_ids=[*ids.values()],
            logprob_token_ids=[*ids.values()],  # of the whole vocabulary, before it was limited
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        start = {"prompt_token_ids": [self._tokenizer.convert_tokens_to_ids(WHISPER_START)]}
        output = await self._generate(clip, self._whisper_prompt(clip, start), sampling)
        candidates = output.outputs[0].logprobs[0]
        return normalised({language: candidates[token].logprob for language, token in ids.items()})

    @cached_property
    def _language_ids(self) -> dict[str, int]:
        return language_token_ids(self._tokenizer, self._family)

    async def _encode(self, front_end: "Batching[EncodedClip]", clip: ClipRequest) -> "EncodedClip":
        try:
            return await front_end.encode(clip)
        except (ValueError, RuntimeError) as error:
            raise EngineError(
                "engine_refused", f"a clip of {clip.seconds:.1f} s could not be encoded: {error}"
            ) from error

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._tokenizer)

    def _words(self, clip: ClipRequest, completion: Any, log_posteriors: Any) -> tuple[Word, ...]:
        """The words of vLLM's completion."""
        from speech.granite.words import timed_words

        chosen = zip(completion.token_ids, completion.logprobs, strict=True)
        tokens = [(token, candidates[token].logprob) for token, candidates in chosen]
        return timed_words(completion.text, tokens, log_posteriors, self._vocabulary, clip.options)

    def _result(self, clip: ClipRequest, output: Any, audio_tokens: int = 0) -> DecodingResult:
        """What vLLM's final output for a clip says."""
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise EngineError(
                "engine_aborted", f"vLLM ended a clip of {clip.seconds:.1f} s: {completion.finish_reason}"
            )
        tokens = tuple(completion.token_ids)
        metrics = completion.spec_decode_metrics
        logprob = completion.cumulative_logprob
        return DecodingResult(
            text=completion.text.strip(),
            token_ids=tokens,
            avg_logprob=logprob / len(tokens) if logprob is not None and tokens else None,
            complete=completion.finish_reason == "stop",
            usage=Usage(
                audio_tokens=audio_tokens,
                prompt_tokens=len(output.prompt_token_ids or []),
                output_tokens=len(tokens),
                draft_tokens=metrics.num_draft_tokens if metrics else 0,
                accepted_draft_tokens=sum(n * steps for n, steps in enumerate(metrics.histogram)) if metrics else 0,
            ),
        )

    async def _generate(self, clip: ClipRequest, prompt: Any, sampling: Any) -> Any:
        """vLLM's final output for a clip."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        output = None
        try:
            await self._prepare()
            async for partial in self._llm.generate(
                prompt, sampling, request_id=clip.id, trace_headers=trace_headers()
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
            bound = await self._llm.collective_rpc("bind_drafter", args=(self._adaptive,))
        except EngineDeadError:
            raise
        except Exception as error:  # vLLM passes on a worker's exception as a bare Exception with its text
            raise UsageError("bad_engine", f"the CTC drafter cannot be bound: {error}") from error
        if not any(bound):
            raise UsageError("bad_engine", "no worker of vLLM has the CTC drafter: give --speculation off")

    def _sampling(self, clip: ClipRequest, draft: dict[str, Any]) -> Any:
        """
        Args:
            draft: read by ``speech.granite.drafter``; empty for none.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=0.0,
            max_tokens=self._family.max_tokens(clip.seconds),
            logprobs=0,  # of the chosen token alone
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=draft or None,
        )

    def _granite_prompt(self, clip: ClipRequest, encoded: "EncodedClip") -> Any:
        """The prompt with the clip's embeddings in place of its audio token."""
        from vllm.inputs.engine import embeds_input

        tokens = self._tokenizer.encode(self._family.prompt(clip.options, self._tokenizer))
        start, length = tokens.index(self._audio_token_id), len(encoded.embeddings)
        tokens[start : start + 1] = [self._audio_token_id] * length
        embeddings = encoded.embeddings.new_zeros(len(tokens), encoded.embeddings.shape[1])
        embeddings[start : start + length] = encoded.embeddings
        is_text = [not start <= position < start + length for position in range(len(tokens))]
        return embeds_input(embeddings, prompt_token_ids=tokens, is_token_ids=is_text)

    def _whisper_prompt(self, clip: ClipRequest, decoder_prompt: dict[str, Any]) -> Any:
        """Whisper is an encoder-decoder: the audio is the encoder's whole prompt."""
        audio = {"prompt": "", "multi_modal_data": {"audio": (clip.waveform(), SAMPLE_RATE)}}
        return {"encoder_prompt": audio, "decoder_prompt": decoder_prompt}

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
