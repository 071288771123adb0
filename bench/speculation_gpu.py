"""Break-even of drafts: a full-size Granite 4.0 1B Speech with random weights, drafts of known quality.

    python -m bench.speculation_gpu [--concurrency 1,4,16,64,256] [--acceptance 0,50,80,95] [--small]

Needs a GPU and no checkpoint: the architecture is the released one (16 Conformer layers of 1024, 40 LLM
layers of 2048, vocabulary 100353), the weights are random ones in bfloat16. Every clip gets the
same number of output tokens. First without speculation, which also gives this model's output; then with drafts in
which every token is right with a chosen probability, in draft windows of full length. Random logits are close to
each other, and in bfloat16 their order depends a little on the batch: the resulting acceptance is measured and
printed. Each level is run several times; figures are medians.

Prints time per utterance relative to off, by acceptance and concurrency, and the number of tokens whose
verification costs as much as the fixed part of a step, fitted over all runs as in ``bench.speculation``: F
of ``speech.granite.draft_length``. The last line is JSON. ``--small`` is a model that a CPU can run, to try
this script.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoFeatureExtractor
from transformers.models.granite_speech.modeling_granite_speech import (
    GraniteSpeechCTCEncoder,
    GraniteSpeechEncoderProjector,
)

from bench.speculation import Run, decode_all, fitted_step_cost_tokens
from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.vllm import VllmEngine
from speech.granite.frontend import FrontEnd
from speech.granite.logmel import LogMel
from speech.models.families import AUDIO_TOKEN, GRANITE_4_0, Family
from speech.recording import Options

CLIPS_PER_SLOT = 3
NO_DRAFTS = -1  # in place of a share of right tokens


@dataclass(frozen=True)
class Measurement:
    """One concurrency, without drafts or with drafts of one quality."""

    concurrency: int
    right: int | None  # per cent of draft tokens made right; None: no drafts
    accepted: float  # share of draft tokens that the model accepted
    utterance_s: float  # engine seconds per utterance
    to_off: float  # RTFx over that without drafts
    step_s: float
    step_tokens: float  # mean tokens computed in a step, without those of the prompts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", default="1,4,16,64,256")
    parser.add_argument("--acceptance", default="0,50,80,95", help="per cent of draft tokens that are right")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a clip")
    parser.add_argument("--tokens", type=int, default=48, help="output tokens of a clip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft-tokens", type=int, help="the most draft tokens verified in a step")
    parser.add_argument("--small", action="store_true")
    parsed = parser.parse_args(arguments)
    levels = [int(level) for level in parsed.concurrency.split(",")]
    shares = [int(share) for share in parsed.acceptance.split(",")]
    clips = noise(max(levels) * CLIPS_PER_SLOT, parsed.seconds)
    with random_checkpoint(parsed.small) as folder:
        config = EngineConfig(
            model=folder, speculation="off", concurrent_clips=max(levels), draft_tokens=parsed.draft_tokens
        )
        plain = asyncio.run(_without_drafts(config, clips, levels, parsed.tokens, parsed.rounds))
        outputs = [decoding.token_ids for decoding in plain[max(levels), NO_DRAFTS][0].decodings]
        config = config.model_copy(update={"speculation": "ctc"})
        drafted = asyncio.run(_with_drafts(config, clips, levels, parsed.tokens, parsed.rounds, shares, outputs))
    runs = dict(sorted((plain | drafted).items()))
    measured = [_measurement(right, found, plain[level, NO_DRAFTS]) for (level, right), found in runs.items()]
    step_cost_tokens = fitted_step_cost_tokens([*itertools.chain(*runs.values())])
    _print(measured, step_cost_tokens)
    print(json.dumps({"free_tokens": round(step_cost_tokens, 1), "levels": [asdict(level) for level in measured]}))


class FixedLengthEngine(VllmEngine):
    """Decodes ``tokens`` tokens for every clip, and verifies the given drafts."""

    def __init__(self, config: EngineConfig, family: Family, tokens: int) -> None:
        super().__init__(config, family)
        self.tokens = tokens
        self.drafts: list[list[int]] = []  # by the number that ``decode_all`` gives a clip

    def _sampling(self, clip: ClipRequest, draft: dict[str, Any]) -> Any:
        given = {"draft": self.drafts[int(clip.id.partition("/")[0])]} if self.drafts else {}
        sampling = super()._sampling(clip, given)
        sampling.ignore_eos, sampling.max_tokens = True, self._tokens_of(clip)
        return sampling

    def _tokens_of(self, clip: ClipRequest) -> int:
        return self.tokens


class DummyWeightsEngine(FixedLengthEngine):
    """With random weights that are in no file."""

    def _arguments(self, config: EngineConfig, on_cpu: bool) -> dict[str, Any]:
        return super()._arguments(config, on_cpu) | {"load_format": "dummy"}

    def _load_front_end(self, model: str, device: torch.device) -> FrontEnd:
        config = AutoConfig.from_pretrained(model)
        with device:
            parts = {
                "encoder": GraniteSpeechCTCEncoder(config.encoder_config),
                "projector": GraniteSpeechEncoderProjector(config),
            }
        tensors = {
            f"{part}.{name}": tensor.detach().to(self._llm.model_config.dtype)
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        log_mel = LogMel(AutoFeatureExtractor.from_pretrained(model).mel_filters, device)
        return FrontEnd(config, log_mel, tensors)


Runs = dict[tuple[int, int], list[Run]]  # by concurrency and share of right tokens


async def _without_drafts(
    config: EngineConfig, clips: list[ClipRequest], levels: list[int], tokens: int, rounds: int
) -> Runs:
    engine = DummyWeightsEngine(config, GRANITE_4_0, tokens)
    try:
        await decode_all(engine, clips[:4], 4)  # warm-up: one-time initialisation
        return {
            (level, NO_DRAFTS): [
                await decode_all(engine, clips[: level * CLIPS_PER_SLOT], level) for _ in range(rounds)
            ]
            for level in levels
        }
    finally:
        engine.stop()


async def _with_drafts(
    config: EngineConfig,
    clips: list[ClipRequest],
    levels: list[int],
    tokens: int,
    rounds: int,
    shares: list[int],
    outputs: list[tuple[int, ...]],
) -> Runs:
    engine = DummyWeightsEngine(config, GRANITE_4_0, tokens)
    vocabulary = max(token for output in outputs for token in output) + 2
    runs: Runs = {}
    try:
        await decode_all(engine, clips[:4], 4)
        for share, level, _ in itertools.product(shares, levels, range(rounds)):
            rng = random.Random(share)
            engine.drafts = [
                [token if rng.random() * 100 < share else (token + 1) % vocabulary for token in right]
                for right in outputs
            ]
            runs.setdefault((level, share), []).append(await decode_all(engine, clips[: level * CLIPS_PER_SLOT], level))
        return runs
    finally:
        engine.stop()


def _measurement(right: int, runs: list[Run], plain: list[Run]) -> Measurement:
    decodings = runs[0].decodings
    drafted = sum(each.usage.draft_tokens for each in decodings)
    seconds = statistics.median(run.seconds for run in runs)
    return Measurement(
        concurrency=runs[0].concurrency,
        right=None if right == NO_DRAFTS else right,
        accepted=sum(each.usage.accepted_draft_tokens for each in decodings) / drafted if drafted else 0.0,
        utterance_s=seconds / len(decodings),
        to_off=statistics.median(run.seconds for run in plain) / seconds,
        step_s=seconds / runs[0].steps,
        step_tokens=runs[0].tokens / runs[0].steps,
    )


def _print(measurements: list[Measurement], step_cost_tokens: float) -> None:
    table = Table(
        "concurrency", "drafts right", "accepted", "s an utterance", "RTFx to off", "ms a step", "tokens a step"
    )
    for each in measurements:
        table.add_row(
            str(each.concurrency),
            "off" if each.right is None else f"{each.right} %",
            "" if each.right is None else f"{each.accepted:.0%}",
            f"{each.utterance_s:.4f}",
            f"{each.to_off:.2f}",
            f"{each.step_s * 1e3:.1f}",
            f"{each.step_tokens:.0f}",
        )
    Console().print(table)
    Console().print(f"the fixed part of a step costs as much as {step_cost_tokens:.0f} tokens")


def noise(count: int, seconds: float) -> list[ClipRequest]:
    """Clips of noise, all different."""
    rng = np.random.default_rng(0)
    return [noise_clip(rng, seconds, number) for number in range(count)]


def noise_clip(rng: np.random.Generator, seconds: float, number: int) -> ClipRequest:
    samples = (rng.standard_normal(int(seconds * SAMPLE_RATE), np.float32) * 3000).astype(np.int16)
    return ClipRequest(samples, Options(), str(number))


@contextmanager
def random_checkpoint(small: bool) -> Iterator[str]:
    """A checkpoint folder of the shape of Granite 4.0 1B Speech, without weights."""
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
    """``count`` different words of lower-case letters: a, b, … aa, ab, …"""
    for number in range(1, count + 1):
        letters = ""
        while number:
            number, letter = divmod(number - 1, 26)
            letters = chr(ord("a") + letter) + letters
        yield letters


if __name__ == "__main__":
    main()
