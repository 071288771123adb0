"""What drafts change in bfloat16: how often, and by how little the model had preferred the other token.

    python -m bench.near_ties [--model demo/model] [--clips 96]

At float32 the tokens with and without drafts are equal (``tests/speech/test_speculation.py``). In bfloat16 a
logit depends in its last bits on how many tokens are computed together, with or without drafts, so that two
tokens that the model likes equally may change places. Here clips are decoded in bfloat16 one at a time without
drafts, and then in other ways: many at a time, and with drafts. Where the tokens of a clip begin to differ, the
logits of the first run tell how far apart the two were, in logits and in steps of bfloat16 at that height (its
numbers have 8 bits). Tokens after the first difference follow from it and are not counted again.

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

MANTISSA_BITS = 7  # of bfloat16, that are written


@dataclass(frozen=True)
class Difference:
    """Where a clip's tokens begin to be others than in the first run."""

    gap: float  # between the two tokens' logits in the first run
    steps: float  # the same, in steps of bfloat16
    second: bool  # whether the other token was the first run's second choice


@dataclass(frozen=True)
class Way:
    """Clips decoded in one way, against the first."""

    name: str
    clips: int
    tokens: int
    differing: int  # clips
    per_thousand_tokens: float
    median_gap: float
    largest_gap: float
    largest_gap_steps: float
    second_choices: int  # differences in which the other token was the first run's second choice


class Scored(VllmEngine):
    """Keeps the logits of the two likeliest tokens of every place, by the number of the clip."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config, family_of(config.model))
        self.scores: dict[int, list[dict[int, float]]] = {}

    def _arguments(self, config: EngineConfig, on_cpu: bool) -> dict[str, Any]:
        return super()._arguments(config, on_cpu) | {"logprobs_mode": "raw_logits"}

    def _sampling(self, clip: ClipRequest) -> Any:
        sampling = super()._sampling(clip)
        sampling.logprobs = 2
        return sampling

    async def _answer(self, clip: ClipRequest) -> Any:
        output = await super()._answer(clip)
        self.scores[int(clip.id.partition("/")[0])] = [
            {token: scored.logprob for token, scored in place.items()} for place in output.outputs[0].logprobs
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
    plain, scores = asyncio.run(_decode(parsed.model, "off", clips, (1, 16)))
    drafted, _ = asyncio.run(_decode(parsed.model, "ctc", clips, (1, 16)))
    ways = [
        _way(name, other, plain[1], scores)
        for name, other in (
            ("without drafts, 16 at a time", plain[16]),
            ("with drafts, one at a time", drafted[1]),
            ("with drafts, 16 at a time", drafted[16]),
        )
    ]
    margin = statistics.median(gap for places in scores.values() for gap in map(_gap, places))
    _print(ways, margin)
    print(json.dumps({"median_margin": round(margin, 3), "ways": [asdict(way) for way in ways]}))


async def _decode(
    model: str, speculation: Any, clips: list[ClipRequest], levels: Sequence[int]
) -> tuple[dict[int, list[tuple[int, ...]]], dict[int, list[dict[int, float]]]]:
    """The clips' tokens, by concurrency, and the logits of the first."""
    config = EngineConfig(model=model, speculation=speculation, dtype="bfloat16", concurrent_clips=max(levels))
    engine = Scored(config)
    try:
        tokens = {}
        scores: dict[int, list[dict[int, float]]] = {}
        for level in levels:
            tokens[level] = [decoding.token_ids for decoding in (await decode_all(engine, clips, level)).decodings]
            scores = scores or dict(engine.scores)
        return tokens, scores
    finally:
        engine.stop()


def _way(
    name: str, other: list[tuple[int, ...]], plain: list[tuple[int, ...]], scores: dict[int, list[dict[int, float]]]
) -> Way:
    pairs = zip(plain, other, strict=True)
    differences = [_difference(*pair, scores[number]) for number, pair in enumerate(pairs) if pair[0] != pair[1]]
    gaps = [difference.gap for difference in differences]
    tokens = sum(map(len, plain))
    return Way(
        name=name,
        clips=len(plain),
        tokens=tokens,
        differing=len(differences),
        per_thousand_tokens=1000 * len(differences) / tokens,
        median_gap=statistics.median(gaps) if gaps else 0.0,
        largest_gap=max(gaps, default=0.0),
        largest_gap_steps=max((difference.steps for difference in differences), default=0.0),
        second_choices=sum(difference.second for difference in differences),
    )


def _difference(plain: tuple[int, ...], other: tuple[int, ...], scores: list[dict[int, float]]) -> Difference:
    place = next(place for place, (one, two) in enumerate(zip(plain, other, strict=False)) if one != two)
    best = scores[place][plain[place]]
    # The third choice at best where it is not told.
    gap = best - scores[place].get(other[place], min(scores[place].values()))
    return Difference(
        gap, gap / 2.0 ** (math.floor(math.log2(abs(best))) - MANTISSA_BITS), other[place] in scores[place]
    )


def _gap(place: dict[int, float]) -> float:
    first, second, *_ = sorted(place.values(), reverse=True)
    return first - second


def _print(ways: list[Way], margin: float) -> None:
    table = Table("in bfloat16", "clips that differ", "per 1000 tokens", "gap, median", "gap, largest", "in bf16 steps")
    for way in ways:
        table.add_row(
            way.name,
            f"{way.differing} of {way.clips}",
            f"{way.per_thousand_tokens:.2f}",
            f"{way.median_gap:.3f}",
            f"{way.largest_gap:.3f}",
            f"{way.largest_gap_steps:.1f}",
        )
    Console().print(table)
    Console().print(f"a token's margin over the next is {margin:.2f} logits in the median")


if __name__ == "__main__":
    main()
