"""What drafts bring: engine steps, tokens a step and RTFx with and without them, by concurrency.

    python -m bench.speculation [--model demo/model] [--manifest demo/samples/manifest.jsonl]
                                [--modes off,auto,ctc,ctc-accept] [--concurrency 1,4,16,64]

Every mode decodes the same clips of the manifest's recordings, in the same order, so many at a time.
An engine a mode is started with room for the highest concurrency and all its levels are run on it;
loading is not in the figures, hearing the files neither. The fastest of a level's runs counts: the
others had a neighbour. Steps of a clip are those that gave it tokens, its prompt's included.
Word error rates are over recordings that have a ``text``. Prints a table and, last, a line of JSON.
"""

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import jiwer
from rich.console import Console
from rich.table import Table

from cluster.storage import Storage
from pipelines import manifest
from speech.engine import ClipRequest, Decoding, Engine, EngineConfig, start_engine
from speech.errors import RayscribeError
from speech.listener import Listener
from speech.models import family_of
from speech.recording import Options, Recording
from speech.speculation import ctc_can_help


@dataclass(frozen=True)
class Level:
    """One mode at one concurrency."""

    mode: str
    concurrency: int
    steps_per_clip: float
    tokens_per_step: float
    drafts_accepted: float  # share of drafted tokens
    rtfx: float
    rtfx_to_off: float
    wer: float
    same_as_off: float  # share of clips with the same tokens


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--modes", default="off,auto,ctc,ctc-accept", help="off is the yardstick and comes first")
    parser.add_argument("--concurrency", default="1,4,16,64")
    parser.add_argument("--clips", type=int, default=128, help="clips a run; taken again from the start if too few")
    parser.add_argument("--runs", type=int, default=2, help="of each level")
    parser.add_argument("--draft-tokens", type=int, default=EngineConfig().draft_tokens)
    parsed = parser.parse_args(arguments)
    levels = [int(level) for level in parsed.concurrency.split(",")]
    truths, found = _clips(parsed.manifest, parsed.model)
    clips = list(itertools.islice(itertools.cycle(found), parsed.clips))
    measured: list[Level] = []
    plain: dict[int, tuple[float, list[Decoding]]] = {}
    for mode in parsed.modes.split(","):
        config = EngineConfig(
            model=parsed.model,
            speculation=mode,
            draft_tokens=parsed.draft_tokens,
            concurrent_clips=max(levels),
        )
        for concurrency, (rtfx, decodings) in asyncio.run(_measure(config, clips, levels, parsed.runs)).items():
            plain.setdefault(concurrency, (rtfx, decodings))
            measured.append(_level(mode, concurrency, rtfx, decodings, plain[concurrency], clips, truths))
    _print(measured, len(clips))
    print(json.dumps([asdict(level) for level in measured]))


def _clips(uri: str, model: str) -> tuple[dict[str, str], list[ClipRequest]]:
    """The truths by recording, and the clips of all recordings that are plainly transcribed."""
    family = family_of(model)
    listener, truths, clips = Listener(clip_s=family.clip_s), {}, []
    for row in manifest.read(uri, Storage()):
        try:
            recording = Recording.from_row(row, Options())
            family.check(recording.options)
            heard = listener.listen(recording)
        except RayscribeError:  # the samples hold bad rows on purpose
            continue
        if not ctc_can_help(recording.options):
            continue
        if recording.text is not None:
            truths[recording.id] = recording.text
        clips += [
            ClipRequest(clip.samples, recording.options, f"{recording.id}/{number}")
            for number, clip in enumerate(heard.clips)
        ]
    return truths, clips


async def _measure(
    config: EngineConfig, clips: list[ClipRequest], levels: list[int], times: int
) -> dict[int, tuple[float, list[Decoding]]]:
    engine = start_engine(config, family_of(config.model))
    try:
        await _decode_all(engine, clips[:4], 4, "first")  # pays for what is set up once
        found = {}
        for level in levels:
            runs = [await _decode_all(engine, clips, level, f"{level}-{run}") for run in range(times)]
            found[level] = max(runs, key=lambda run: run[0])
        return found
    finally:
        engine.stop()


async def _decode_all(
    engine: Engine, clips: list[ClipRequest], concurrency: int, name: str
) -> tuple[float, list[Decoding]]:
    """RTFx of the clips' own seconds, and the decodings in their order."""
    places = asyncio.Semaphore(concurrency)

    async def decode(number: int, clip: ClipRequest) -> Decoding:
        async with places:
            return await engine.decode(replace(clip, id=f"{name}/{number}"))

    start = time.perf_counter()
    decodings = await asyncio.gather(*(decode(number, clip) for number, clip in enumerate(clips)))
    return sum(clip.seconds for clip in clips) / (time.perf_counter() - start), decodings


def _level(
    mode: str,
    concurrency: int,
    rtfx: float,
    decodings: list[Decoding],
    plain: tuple[float, list[Decoding]],
    clips: list[ClipRequest],
    truths: dict[str, str],
) -> Level:
    tokens = sum(each.usage.output_tokens for each in decodings)
    drafted = sum(each.usage.draft_tokens for each in decodings)
    accepted = sum(each.usage.accepted_draft_tokens for each in decodings)
    return Level(
        mode=mode,
        concurrency=concurrency,
        steps_per_clip=(tokens - accepted) / len(decodings),
        tokens_per_step=tokens / (tokens - accepted),
        drafts_accepted=accepted / drafted if drafted else 0.0,
        rtfx=rtfx,
        rtfx_to_off=rtfx / plain[0],
        wer=_word_error_rate(clips, decodings, truths),
        same_as_off=sum(a.token_ids == b.token_ids for a, b in zip(decodings, plain[1], strict=True)) / len(clips),
    )


def _word_error_rate(clips: list[ClipRequest], decodings: list[Decoding], truths: dict[str, str]) -> float:
    """Over the recordings that have a truth, each once."""
    texts: dict[str, dict[str, str]] = {}
    for clip, decoding in zip(clips, decodings, strict=True):
        texts.setdefault(clip.id.rpartition("/")[0], {}).setdefault(clip.id, decoding.text)
    pairs = [(truths[name], " ".join(parts.values())) for name, parts in texts.items() if truths.get(name)]
    return jiwer.wer([truth for truth, _ in pairs], [said for _, said in pairs]) if pairs else float("nan")


def _print(levels: list[Level], clips: int) -> None:
    table = Table(
        "concurrency", "mode", "steps a clip", "tokens a step", "accepted", "RTFx", "to off", "WER", "same as off",
        title=f"{clips} clips",
    )  # fmt: skip
    for level in sorted(levels, key=lambda level: level.concurrency):
        table.add_row(
            str(level.concurrency),
            level.mode,
            f"{level.steps_per_clip:.1f}",
            f"{level.tokens_per_step:.2f}",
            f"{level.drafts_accepted:.0%}",
            f"{level.rtfx:.1f}",
            f"{level.rtfx_to_off:.2f}",
            f"{level.wer:.1%}",
            f"{level.same_as_off:.1%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
