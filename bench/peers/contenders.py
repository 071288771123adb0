"""The contenders that run in this environment: our engine, vLLM's offline ``LLM``, Transformers, Ray Data.

    python -m bench.peers.contenders NAME MODEL CLIPS

All decode greedily.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.peers.turns import SAMPLE_RATE, Answer, Clips, compete, load_clips, waveform

KV_CACHE_BYTES = 1 << 30  # on a CPU, as EngineConfig has it
BATCH_SIZE = 8  # of Ray Data's actor
CARD_TOKENS = 200  # ``max_new_tokens`` on Granite Speech's model card
Load = Callable[[argparse.Namespace, Clips], Callable[[], Answer]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=LOADERS)
    parser.add_argument("model")
    parser.add_argument("clips")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--tokens", type=int, help="of every clip, whatever the model would write")
    parsed = parser.parse_args()
    compete(lambda: LOADERS[parsed.name](parsed, load_clips(parsed.clips)))


def _ours(parsed: argparse.Namespace, clips: Clips) -> Callable[[], Answer]:
    from bench.speculation import decode_all
    from bench.speculation_gpu import FixedLengthEngine
    from speech.engines.base import ClipRequest, Engine, EngineConfig, start_engine
    from speech.models.checkpoint import family_of
    from speech.recording import Options

    config, family = EngineConfig(model=parsed.model, concurrent_clips=parsed.concurrency), family_of(parsed.model)
    engine: Engine = FixedLengthEngine(config, family, parsed.tokens) if parsed.tokens else start_engine(config, family)
    requests = [ClipRequest(samples, Options(), str(number)) for number, samples in enumerate(clips)]
    loop = asyncio.new_event_loop()

    def transcribe() -> Answer:
        decodings = loop.run_until_complete(decode_all(engine, requests, len(requests))).decodings
        return Answer([each.text for each in decodings], sum(each.usage.output_tokens for each in decodings))

    return transcribe


def _vllm(parsed: argparse.Namespace, clips: Clips) -> Callable[[], Answer]:
    """vLLM's offline API with Whisper, and the engine arguments that ours has."""
    for name, value in {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_PLUGINS": ""}.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    on_cpu = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": KV_CACHE_BYTES}
    llm = LLM(
        parsed.model,
        max_num_seqs=parsed.concurrency,
        limit_mm_per_prompt={"audio": 1},
        seed=0,
        **(on_cpu if current_platform.is_cpu() else {}),
    )
    limit = {"max_tokens": parsed.tokens, "ignore_eos": True} if parsed.tokens else {"max_tokens": CARD_TOKENS}
    sampling = SamplingParams(temperature=0.0, **limit)
    decoder = {"prompt": "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"}

    def transcribe() -> Answer:
        prompts: list[Any] = [
            {
                "encoder_prompt": {"prompt": "", "multi_modal_data": {"audio": (waveform(clip), SAMPLE_RATE)}},
                "decoder_prompt": decoder,
            }
            for clip in clips
        ]
        outputs = [each.outputs[0] for each in llm.generate(prompts, sampling, use_tqdm=False)]
        return Answer([each.text.strip() for each in outputs], sum(len(each.token_ids) for each in outputs))

    return transcribe


class CardLoop:
    """The loop of Granite Speech's model card, for one clip or a batch: processor, ``generate``, the new tokens.

    On a GPU in the checkpoint's dtype, on a CPU in float32, as our engine.
    """

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._processor = AutoProcessor.from_pretrained(model)
        dtype = "auto" if self._device == "cuda" else "float32"
        self._model = AutoModelForSpeechSeq2Seq.from_pretrained(model, dtype=dtype).to(self._device).eval()
        chat = [{"role": "user", "content": "<|audio|>can you transcribe the speech into a written format?"}]
        self._prompt = self._processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        self._processor.tokenizer.padding_side = "left"

    def texts(self, clips: Clips) -> tuple[list[str], int]:
        """Texts of clips, and the number of their tokens."""
        import torch

        audio = [torch.from_numpy(waveform(clip)) for clip in clips]
        prompts = [self._prompt] * len(clips)
        inputs = self._processor(prompts, audio, device=self._device, return_tensors="pt", padding=True)
        inputs = inputs.to(self._device)
        inputs["input_features"] = inputs["input_features"].to(self._model.dtype)
        with torch.inference_mode():
            output = self._model.generate(**inputs, max_new_tokens=CARD_TOKENS, do_sample=False, num_beams=1)
        new = output[:, inputs["input_ids"].shape[1] :]
        tokenizer = self._processor.tokenizer
        # With the token that ends a text, as others count, and which is the padding too.
        tokens = int(((new != tokenizer.pad_token_id).sum(1) + 1).clamp(max=new.shape[1]).sum())
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)], tokens


def _card(parsed: argparse.Namespace, clips: Clips) -> Callable[[], Answer]:
    loop = CardLoop(parsed.model)

    def transcribe() -> Answer:
        parts = [loop.texts([clip]) for clip in clips]
        return Answer([text for texts, _ in parts for text in texts], sum(tokens for _, tokens in parts))

    return transcribe


class RayTranscriber:
    """The actor of Ray Data's audio examples: a Transformers model, called with batches of rows."""

    def __init__(self, model: str) -> None:
        self._loop = CardLoop(model)
        self._loop.texts([np.zeros(SAMPLE_RATE, np.int16)])
        self._ready_at = time.time()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        texts, tokens = self._loop.texts(list(batch["samples"]))
        count = len(texts)
        times = {"ready_at": np.full(count, self._ready_at), "finished_at": np.full(count, time.time())}
        return {"number": batch["number"], "text": np.array(texts), "tokens": np.full(count, tokens / count), **times}


def _ray_data(parsed: argparse.Namespace, clips: Clips) -> Callable[[], Answer]:
    """``map_batches`` with one actor of all cores, or of the GPU; timed from its readiness."""
    import ray
    import ray.data
    import torch

    ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"number": number, "samples": clip} for number, clip in enumerate(clips)]
    resources = {"num_gpus": 1} if torch.cuda.is_available() else {"num_cpus": max(1, (os.cpu_count() or 1) - 1)}
    # Ray gives a process as many OpenMP threads as cores: those of the actor would be one less.
    environment = {"env_vars": {"OMP_NUM_THREADS": str(os.cpu_count())}}

    def transcribe() -> Answer:
        transcribed = ray.data.from_items(rows).map_batches(
            RayTranscriber,
            fn_constructor_args=(parsed.model,),
            batch_size=BATCH_SIZE,
            compute=ray.data.ActorPoolStrategy(size=1),
            runtime_env=environment,
            **resources,
        )
        found = sorted(transcribed.take_all(), key=lambda row: int(row["number"]))
        seconds = max(row["finished_at"] for row in found) - min(row["ready_at"] for row in found)
        tokens = round(sum(row["tokens"] for row in found))
        return Answer([str(row["text"]) for row in found], tokens, seconds)

    return transcribe


LOADERS: dict[str, Load] = {"ours": _ours, "vllm": _vllm, "card": _card, "ray-data": _ray_data}

if __name__ == "__main__":
    main()
