"""Output tokens that change in bfloat16: how often, and by what logit difference.

    python -m bench.near_ties [--model demo/model] [--clips 96]

At float32 the tokens with and without drafts are equal (``tests/speech/engines/test_speculation.py``).
In bfloat16 the last bits of a logit depend on how many tokens are computed together, with or without drafts, so that
two tokens with nearly equal logits may swap ranks. The baseline decodes clips in bfloat16 one at a time without drafts;
the variants decode 16 at a time, with drafts, or both. At the first token of a clip that differs, the baseline's
logits say how far apart the two tokens were, in logits and in units in the last place (ULP) of bfloat16, whose
significand has 8 bits. Later differences follow from the first and are not counted.

Prints a table and, last, a line of JSON.
"""

import argparse
import asyncio
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.speculation import clips_of, decode_all
from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.vllm import VllmEngine
from speech.models.checkpoint import family_of

MANTISSA_BITS = 7  # of bfloat16, as stored: without the leading 1


@dataclass(frozen=True)
class Difference:
    """The first token of a clip that differs from the baseline's."""

    gap: float  # between the two tokens' logits in the baseline
    ulps: float  # the same, in ULP of bfloat16
    second: bool  # whether the other token was the baseline's second choice


@dataclass(frozen=True)
class Variant:
    """Clips decoded in one way, compared with the baseline."""

    name: str
    clips: int
    tokens: int
    differing: int  # clips
    per_thousand_tokens: float
    median_gap: float
    largest_gap: float
    largest_gap_steps: float  # in ULP of bfloat16
    second_choices: int  # differences in which the other token was the baseline's second choice


class TopLogitsEngine(VllmEngine):
    """Keeps the two highest logits of every output position, by the number that ``decode_all`` gives a clip."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config, family_of(config.model))
        self.logits: dict[int, list[dict[int, float]]] = {}

    def _arguments(self, config: EngineConfig, on_cpu: bool) -> dict[str, Any]:
        return super()._arguments(config, on_cpu) | {"logprobs_mode": "raw_logits"}

    def _sampling(self, clip: ClipRequest, draft: dict[str, Any]) -> Any:
        sampling = super()._sampling(clip, draft)
        sampling.logprobs = 2
        return sampling

    async def _generate(self, clip: ClipRequest, prompt: Any, draft: dict[str, Any]) -> Any:
        output = await super()._generate(clip, prompt, draft)
        self.logits[int(clip.id.partition("/")[0])] = [
            {token: top.logprob for token, top in position.items()} for position in output.outputs[0].logprobs
        ]
        return output


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--clips", type=int, default=96)
    parsed = parser.parse_args(arguments)
    _, found = clips_of(parsed.manifest, parsed.model)
    clips = list(itertools.islice(itertools.cycle(found), parsed.clips))
    plain, logits = asyncio.run(_decode(parsed.model, "off", clips, (1, 16)))
    drafted, _ = asyncio.run(_decode(parsed.model, "ctc", clips, (1, 16)))
    variants = [
        _compare(name, other, plain[1], logits)
        for name, other in (
            ("without drafts, 16 at a time", plain[16]),
            ("with drafts, one at a time", drafted[1]),
            ("with drafts, 16 at a time", drafted[16]),
        )
    ]
    margin = statistics.median(gap for positions in logits.values() for gap in map(_gap, positions))
    _print(variants, margin)
    print(json.dumps({"median_margin": round(margin, 3), "ways": [asdict(variant) for variant in variants]}))


async def _decode(
    model: str, speculation: Any, clips: list[ClipRequest], levels: Sequence[int]
) -> tuple[dict[int, list[tuple[int, ...]]], dict[int, list[dict[int, float]]]]:
    """The clips' tokens by concurrency, and the two highest logits of each position at the first concurrency."""
    config = EngineConfig(model=model, speculation=speculation, dtype="bfloat16", concurrent_clips=max(levels))
    engine = TopLogitsEngine(config)
    try:
        tokens = {}
        logits: dict[int, list[dict[int, float]]] = {}
        for level in levels:
            tokens[level] = [decoding.token_ids for decoding in (await decode_all(engine, clips, level)).decodings]
            logits = logits or dict(engine.logits)
        return tokens, logits
    finally:
        engine.stop()


def _compare(
    name: str, other: list[tuple[int, ...]], plain: list[tuple[int, ...]], logits: dict[int, list[dict[int, float]]]
) -> Variant:
    pairs = zip(plain, other, strict=True)
    differences = [_difference(*pair, logits[number]) for number, pair in enumerate(pairs) if pair[0] != pair[1]]
    gaps = [difference.gap for difference in differences]
    tokens = sum(map(len, plain))
    return Variant(
        name=name,
        clips=len(plain),
        tokens=tokens,
        differing=len(differences),
        per_thousand_tokens=1000 * len(differences) / tokens,
        median_gap=statistics.median(gaps) if gaps else 0.0,
        largest_gap=max(gaps, default=0.0),
        largest_gap_steps=max((difference.ulps for difference in differences), default=0.0),
        second_choices=sum(difference.second for difference in differences),
    )


def _difference(plain: tuple[int, ...], other: tuple[int, ...], logits: list[dict[int, float]]) -> Difference:
    at = next(index for index, (one, two) in enumerate(zip(plain, other, strict=False)) if one != two)
    best = logits[at][plain[at]]
    # A token outside the two kept has at most the logit of the second.
    gap = best - logits[at].get(other[at], min(logits[at].values()))
    ulp = 2.0 ** (math.floor(math.log2(abs(best))) - MANTISSA_BITS)
    return Difference(gap, gap / ulp, other[at] in logits[at])


def _gap(position: dict[int, float]) -> float:
    first, second, *_ = sorted(position.values(), reverse=True)
    return first - second


def _print(variants: list[Variant], margin: float) -> None:
    table = Table("in bfloat16", "clips that differ", "per 1000 tokens", "gap, median", "gap, largest", "in ULP")
    for variant in variants:
        table.add_row(
            variant.name,
            f"{variant.differing} of {variant.clips}",
            f"{variant.per_thousand_tokens:.2f}",
            f"{variant.median_gap:.3f}",
            f"{variant.largest_gap:.3f}",
            f"{variant.largest_gap_steps:.1f}",
        )
    Console().print(table)
    Console().print(f"the median margin of a token over the next is {margin:.2f} logits")


if __name__ == "__main__":
    main()
