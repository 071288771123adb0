"""The Transformers engine: one clip at a time, by Hugging Face's own generation loop.

The second implementation of ``speech.engines.base``: the reference that the vLLM engine is tested against, and the
engine of machines without vLLM. Clips are decoded one after another, in a thread, so that the event loop is not
blocked.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.engines.dtype import cpu_dtype
from speech.engines.gpu_errors import check_gpu
from speech.errors import EngineError, UsageError
from speech.granite.vocabulary import Vocabulary
from speech.models.families import Family, Granite, Whisper
from speech.models.languages import WHISPER_START, language_token_ids, normalised
from speech.transcript import Usage, Word

if TYPE_CHECKING:
    from speech.granite.ctc import CtcHypothesis

Result = TypeVar("Result")


class TransformersEngine:
    """One model in this process."""

    def __init__(self, config: EngineConfig, family: Family) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import torch
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

        self._family = family
        on_gpu = torch.cuda.is_available()
        dtype: Any = config.dtype if on_gpu else cpu_dtype(config.dtype)
        try:
            self._processor = AutoProcessor.from_pretrained(config.model)
            self._model = AutoModelForSpeechSeq2Seq.from_pretrained(config.model, dtype=dtype)
        except (ValueError, OSError) as error:
            raise UsageError("bad_model", f"Transformers cannot load {config.model!r}: {error}") from error
        self._model = self._model.to("cuda" if on_gpu else "cpu").eval()
        # One, so that a clip waits for one that was cancelled, which is computed to its end.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        self._states: Any = None  # of Granite's encoder for the clip: its last layer's, [1, frames, hidden]
        if isinstance(family, Granite):
            self._model.model.encoder.layers[-1].register_forward_hook(self._keep_states)

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        return await self._run(self._generate, clip)

    async def language_logprobs(self, clip: ClipRequest) -> dict[str, float]:
        return await self._run(self._language_logprobs, clip)

    async def _run(self, compute: Callable[[ClipRequest], Result], clip: ClipRequest) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, compute, clip)
        except (ValueError, RuntimeError) as error:
            check_gpu(error)
            raise EngineError(
                "engine_refused", f"Transformers could not decode a clip of {clip.seconds:.1f} s: {error}"
            ) from error

    def _keep_states(self, layer: Any, inputs: Any, states: Any) -> None:
        self._states = states

    def _hypothesis(self) -> "CtcHypothesis | None":
        """What the CTC head of Granite's encoder makes of the clip that was generated for; None for other models."""
        if self._states is None:
            return None
        from speech.granite import ctc

        logits, self._states = self._model.model.encoder.out(self._states)[0], None
        return ctc.decode(logits, [len(logits)])[0]

    def _generate(self, clip: ClipRequest) -> DecodingResult:
        import torch

        inputs, prompt_length = self._inputs(clip)
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                max_new_tokens=self._family.max_tokens(clip.seconds),
                do_sample=False,
                num_beams=1,
                return_dict_in_generate=True,
                output_logits=True,
            )
            hypothesis = self._hypothesis()
        tokens = output.sequences[0, prompt_length:]
        # Transformers' logits here lack Granite's scaling, which changes the probabilities but not their order.
        scaling = getattr(self._model.config.get_text_config(), "logits_scaling", 1.0)
        logprobs = (torch.stack(output.logits, dim=1)[0].float() / scaling).log_softmax(-1)
        chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
        eos = self._model.generation_config.eos_token_id
        complete = int(tokens[-1]) in (eos if isinstance(eos, list) else [eos])
        audio_token = getattr(self._model.config, "audio_token_index", None)
        prompt_ids = output.sequences[0, :prompt_length].tolist()
        words: tuple[Word, ...] = ()
        if hypothesis is not None and clip.options.word_timestamps:
            words = self._words(clip, tokens.tolist(), chosen.tolist(), hypothesis)
        return DecodingResult(
            text=self._processor.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            token_ids=tuple(tokens.tolist()),
            avg_logprob=float(chosen.mean()),
            complete=complete,
            hypothesis=hypothesis.transcript(clip.options.language) if hypothesis else None,
            usage=Usage(
                audio_tokens=prompt_ids.count(audio_token),
                prompt_tokens=prompt_length,
                output_tokens=len(tokens),
            ),
            words=words,
        )

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._processor.tokenizer)

    def _words(
        self, clip: ClipRequest, tokens: list[int], logprobs: list[float], hypothesis: "CtcHypothesis"
    ) -> tuple[Word, ...]:
        from speech.granite.words import timed_words

        return timed_words(
            self._processor.tokenizer.decode(tokens, skip_special_tokens=True),
            list(zip(tokens, logprobs, strict=True)),
            hypothesis.log_posteriors.cpu(),
            self._vocabulary,
            clip.options,
        )

    @cached_property
    def _language_ids(self) -> dict[str, int]:
        return language_token_ids(self._processor.tokenizer, self._family)

    def _language_logprobs(self, clip: ClipRequest) -> dict[str, float]:
        import torch

        ids, first = self._language_ids, self._processor.tokenizer.convert_tokens_to_ids(WHISPER_START)
        features = self._processor(
            audio=clip.waveform(), sampling_rate=SAMPLE_RATE, return_tensors="pt"
        ).input_features.to(self._model.device, self._model.dtype)
        start = torch.tensor([[first]], device=self._model.device)
        with torch.inference_mode():
            logits = self._model(input_features=features, decoder_input_ids=start).logits[0, -1].float()
        return normalised(dict(zip(ids, logits[[*ids.values()]].tolist(), strict=True)))

    def _inputs(self, clip: ClipRequest) -> tuple[dict[str, Any], int]:
        """Arguments of ``generate``, and the length of the prompt in tokens."""
        import torch

        prompt = self._family.prompt(clip.options, self._processor.tokenizer)
        waveform = torch.from_numpy(clip.waveform())
        if isinstance(self._family, Whisper):
            inputs = self._processor(audio=waveform.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
            tokens = self._processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
            inputs["decoder_input_ids"] = tokens["input_ids"]
            length = tokens["input_ids"].shape[1]
        else:
            inputs = self._processor(prompt, audio=waveform[None], return_tensors="pt")
            length = inputs["input_ids"].shape[1]
        inputs = inputs.to(self._model.device)
        inputs["input_features"] = inputs["input_features"].to(self._model.dtype)
        return dict(inputs), length

    async def check_health(self) -> None:
        """Always healthy: the engine is in this process."""

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        del self._model
