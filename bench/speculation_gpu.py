"""Where drafts stop paying: a full-size Granite 4.0 1B Speech with random weights, drafts of known worth.

    python -m bench.speculation_gpu [--concurrency 1,4,16,64,256] [--acceptance 0,50,80,95] [--small]

Needs a GPU and no checkpoint: the architecture is the released one (16 Conformer layers of 1024, 40 LLM
layers of 2048, vocabulary 100353), the weights are vLLM's dummies in bfloat16. Every clip is answered
with the same number of tokens. First without speculation, which also shows what this model writes; then
with drafts in which every token is right with a chosen probability, in slices of full length. Random
logits are close to each other, and in bfloat16 their order depends a little on the batch: the acceptance
that came of it is measured and shown.

Prints time per utterance to off, by acceptance and concurrency, and the number of tokens whose
verification costs as much as the fixed part of a step, fitted over all runs: F of
``speech.granite.pace``. The last line is JSON. ``--small`` is a model that a CPU can run, for trying
this script out.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from speech.engine import SAMPLE_RATE, ClipRequest, Decoding, EngineConfig
from speech.engine_vllm import VllmEngine
from speech.models import AUDIO_TOKEN, GRANITE_4_0, Family
from speech.recording import Options

TURNS = 3  # clips that each place decodes


@dataclass(frozen=True)
class Run:
    """Clips decoded at one concurrency, without drafts or with drafts of one quality."""

    concurrency: int
    asked: int | None  # per cent of drafted tokens meant to be right; None: no drafts
    accepted: float  # share of drafted tokens that the model accepted
    utterance_s: float  # engine seconds per utterance
    to_off: float  # RTFx to that without drafts
    step_s: float
    step_tokens: float  # tokens that a step computed, in the mean


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", default="1,4,16,64,256")
    parser.add_argument("--acceptance", default="0,50,80,95", help="per cent of drafted tokens that are right")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a clip")
    parser.add_argument("--tokens", type=int, default=48, help="output tokens of a clip")
    parser.add_argument("--draft-tokens", type=int, default=EngineConfig().draft_tokens)
    parser.add_argument("--small", action="store_true")
    parsed = parser.parse_args(arguments)
    levels = [int(level) for level in parsed.concurrency.split(",")]
    clips = noise(max(levels) * TURNS, parsed.seconds)
    with random_checkpoint(parsed.small) as folder:
        config = EngineConfig(model=folder, speculation="off", concurrent_clips=max(levels))
        plain = asyncio.run(_plain(config, clips, levels, parsed.tokens))
        wanted = [decoding.token_ids for decoding in plain[max(levels)][1]]
        config = config.model_copy(update={"speculation": "ctc", "draft_tokens": parsed.draft_tokens})
        shares = [int(share) for share in parsed.acceptance.split(",")]
        drafted = asyncio.run(_drafted(config, clips, levels, parsed.tokens, shares, wanted))
    runs = [
        _run(concurrency, share, elapsed, decodings, plain[concurrency][0])
        for (concurrency, share), (elapsed, decodings) in sorted(
            {(level, None): found for level, found in plain.items()} | drafted,
            key=lambda item: (item[0][0], -1 if item[0][1] is None else item[0][1]),
        )
    ]
    free_tokens = _free_tokens(runs)
    _print(runs, free_tokens)
    print(json.dumps({"free_tokens": free_tokens, "runs": [asdict(run) for run in runs]}))


class FixedLength(VllmEngine):
    """Answers with so many tokens, from dummy weights, and takes the drafts that it is given."""

    def __init__(self, config: EngineConfig, family: Family, tokens: int) -> None:
        super().__init__(config, family)
        self._tokens = tokens
        self.drafts: dict[str, list[int]] = {}

    def _arguments(self, config: EngineConfig, on_cpu: bool) -> dict[str, Any]:
        return super()._arguments(config, on_cpu) | {"load_format": "dummy"}

    def _sampling(self, clip: ClipRequest) -> Any:
        sampling = super()._sampling(clip)
        sampling.ignore_eos, sampling.max_tokens = True, self._tokens
        sampling.extra_args = {"draft": self.drafts[clip.id]} if clip.id in self.drafts else None
        return sampling


async def _plain(
    config: EngineConfig, clips: list[ClipRequest], levels: list[int], tokens: int
) -> dict[int, tuple[float, list[Decoding]]]:
    engine = FixedLength(config, GRANITE_4_0, tokens)
    try:
        await _decode_all(engine, clips[:4], 4)  # pays for what is set up once
        return {level: await _decode_all(engine, clips[: level * TURNS], level) for level in levels}
    finally:
        engine.stop()


async def _drafted(
    config: EngineConfig,
    clips: list[ClipRequest],
    levels: list[int],
    tokens: int,
    shares: list[int],
    wanted: list[tuple[int, ...]],
) -> dict[tuple[int, int | None], tuple[float, list[Decoding]]]:
    engine = FixedLength(config, GRANITE_4_0, tokens)
    vocabulary = max(token for one in wanted for token in one) + 2
    found: dict[tuple[int, int | None], tuple[float, list[Decoding]]] = {}
    try:
        await _decode_all(engine, clips[:4], 4)
        for share in shares:
            rng = random.Random(share)
            for level in levels:
                named = [replace(clip, id=f"{share}-{level}-{clip.id}") for clip in clips[: level * TURNS]]
                for clip, right in zip(named, wanted, strict=False):
                    engine.drafts[clip.id] = [
                        token if rng.random() * 100 < share else (token + 1) % vocabulary for token in right
                    ]
                found[level, share] = await _decode_all(engine, named, level)
        return found
    finally:
        engine.stop()


async def _decode_all(engine: VllmEngine, clips: list[ClipRequest], concurrency: int) -> tuple[float, list[Decoding]]:
    """Seconds for all clips, so many at a time, and their decodings."""
    places = asyncio.Semaphore(concurrency)

    async def decode(clip: ClipRequest) -> Decoding:
        async with places:
            return await engine.decode(clip)

    start = time.perf_counter()
    decodings = await asyncio.gather(*map(decode, clips))
    return time.perf_counter() - start, decodings


def _run(concurrency: int, asked: int | None, elapsed: float, decodings: list[Decoding], plain_s: float) -> Run:
    written = sum(each.usage.output_tokens for each in decodings)
    drafted = sum(each.usage.draft_tokens for each in decodings)
    accepted = sum(each.usage.accepted_draft_tokens for each in decodings)
    prompts = sum(each.usage.prompt_tokens for each in decodings)
    steps = (written - accepted) / concurrency  # each serves all places at once
    return Run(
        concurrency=concurrency,
        asked=asked,
        accepted=accepted / drafted if drafted else 0.0,
        utterance_s=elapsed / len(decodings),
        to_off=plain_s / elapsed,
        step_s=elapsed / steps,
        step_tokens=(written - accepted + drafted + prompts) / steps,
    )


def _free_tokens(runs: list[Run]) -> float:
    """Fixed seconds of a step over seconds a token, by least squares over all runs."""
    seconds = np.array([run.step_s for run in runs])
    fixed, each = np.linalg.lstsq(np.array([[1.0, run.step_tokens] for run in runs]), seconds, rcond=None)[0]
    return float(fixed / each) if each > 0 else float("inf")


def _print(runs: list[Run], free_tokens: float) -> None:
    table = Table("concurrency", "drafts right", "accepted", "s an utterance", "to off", "ms a step", "tokens a step")
    for run in runs:
        table.add_row(
            str(run.concurrency),
            "off" if run.asked is None else f"{run.asked} %",
            "" if run.asked is None else f"{run.accepted:.0%}",
            f"{run.utterance_s:.4f}",
            f"{run.to_off:.2f}",
            f"{run.step_s * 1e3:.1f}",
            f"{run.step_tokens:.0f}",
        )
    Console().print(table)
    Console().print(f"the fixed part of a step costs as much as {free_tokens:.0f} tokens")


def noise(count: int, seconds: float) -> list[ClipRequest]:
    """Clips of noise, each its own."""
    rng = np.random.default_rng(0)
    size = int(seconds * SAMPLE_RATE)
    return [
        ClipRequest((rng.standard_normal(size) * 3000).astype(np.int16), Options(), str(number))
        for number in range(count)
    ]


@contextmanager
def random_checkpoint(small: bool) -> Iterator[str]:
    """A folder that vLLM takes for Granite 4.0 1B Speech: everything but the weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GraniteSpeechConfig,
        GraniteSpeechFeatureExtractor,
        GraniteSpeechProcessor,
        PreTrainedTokenizerFast,
    )

    vocabulary = 512 if small else 100353
    words = {word: number for number, word in enumerate(_words(vocabulary - 2))} | {
        "<|end_of_text|>": vocabulary - 2,
        AUDIO_TOKEN: vocabulary - 1,
    }
    tokens = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for message in messages %}USER: {{ message['content'] }}\n ASSISTANT:{% endfor %}"
    end = "<|end_of_text|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        additional_special_tokens=[AUDIO_TOKEN],
        chat_template=template,
    )
    encoder, width = (1024, 2048) if not small else (64, 64)
    config = GraniteSpeechConfig(
        encoder_config={
            "input_dim": 160,
            "num_layers": 2 if small else 16,
            "hidden_dim": encoder,
            "num_heads": 2 if small else 8,
            "dim_head": encoder // (2 if small else 8),
            "output_dim": 348,
            "context_size": 200,
            "max_pos_emb": 512,
            "conv_kernel_size": 15,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": encoder,
            "encoder_hidden_size": encoder,
            "num_hidden_layers": 2,
            "num_attention_heads": 2 if small else 16,
            "intermediate_size": 4 * encoder,
            "cross_attention_frequency": 1,
        },
        text_config={
            "model_type": "granite",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2 if small else 40,
            "num_attention_heads": 2 if small else 16,
            "num_key_value_heads": 1 if small else 4,
            "max_position_embeddings": 4096,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 1 / 128,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 2,
            "pad_token_id": vocabulary - 2,
        },
        audio_token_index=vocabulary - 1,
        window_size=15,
        downsample_rate=5,
        has_lora_adapter=False,
        architectures=["GraniteSpeechForConditionalGeneration"],
        dtype="float32" if small else "bfloat16",
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        GraniteSpeechProcessor(
            GraniteSpeechFeatureExtractor(), tokenizer, audio_token=AUDIO_TOKEN, chat_template=template
        ).save_pretrained(folder)
        Path(folder, "generation_config.json").write_text("{}")
        yield folder


def _words(count: int) -> Iterator[str]:
    """Different words of lower-case letters, the most frequent spellings of numbers: a, b, … aa, ab, …"""
    for number in range(1, count + 1):
        letters = ""
        while number:
            number, letter = divmod(number - 1, 26)
            letters = chr(ord("a") + letter) + letters
        yield letters


if __name__ == "__main__":
    main()
