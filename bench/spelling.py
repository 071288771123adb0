"""What correcting drafts by earlier words saves: decoding steps with and without, by the order of the recordings.

    python -m bench.spelling [--model demo/model] [--manifest demo/samples/manifest.jsonl] [--concurrency 1]

One engine decodes the same clips in the manifest's order, backwards, and shuffled; each time without
``speech.granite.spelling.SpellingCorrector`` and with one that is empty at the start. Texts must not differ. Prints a
table and, last, a line of JSON.
"""

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from bench.speculation import clips_of, decode_all, steps_of
from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.vllm import VllmEngine
from speech.granite.drafts import Drafts
from speech.models.checkpoint import family_of


@dataclass(frozen=True)
class Measurement:
    """Steps of all clips, in one order."""

    order: str
    steps_without: int
    steps_with: int

    @property
    def ratio(self) -> float:
        return self.steps_with / self.steps_without


class UncorrectedDrafts(Drafts):
    """Drafts that learn no words, so that none is corrected."""

    def learn(self, text: str) -> None:
        pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--concurrency", type=int, default=1)
    parsed = parser.parse_args(arguments)
    _, clips = clips_of(parsed.manifest, parsed.model)
    config = EngineConfig(model=parsed.model, speculation="ctc", concurrent_clips=parsed.concurrency)
    measured = asyncio.run(_measure(config, clips))
    table = Table("order", "steps without", "with", "ratio", title=f"{len(clips)} clips")
    for each in measured:
        table.add_row(each.order, str(each.steps_without), str(each.steps_with), f"{each.ratio:.3f}")
    Console().print(table)
    print(json.dumps([asdict(each) | {"ratio": round(each.ratio, 4)} for each in measured]))


async def _measure(config: EngineConfig, clips: list[ClipRequest]) -> list[Measurement]:
    orders = {"given": clips, "reversed": clips[::-1], "shuffled": random.Random(0).sample(clips, len(clips))}
    engine = VllmEngine(config, family_of(config.model))
    texts: dict[str, str] = {}

    async def steps(drafts: type[Drafts], order: list[ClipRequest]) -> int:
        engine._drafts = drafts(engine._tokenizer)
        run = await decode_all(engine, order, config.concurrent_clips)
        for clip, decoding in zip(order, run.decodings, strict=True):
            if texts.setdefault(clip.id, decoding.text) != decoding.text:
                raise SystemExit(f"the text of clip {clip.id} depends on its draft")
        return sum(map(steps_of, run.decodings))

    try:
        return [
            Measurement(name, await steps(UncorrectedDrafts, order), await steps(Drafts, order))
            for name, order in orders.items()
        ]
    finally:
        engine.stop()


if __name__ == "__main__":
    main()
