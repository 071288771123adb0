"""What drafts bring: engine steps, tokens a step and RTFx with and without them, by concurrency.

    python -m bench.speculation [--model demo/model] [--manifest demo/samples/manifest.jsonl]
                                [--modes off,auto,ctc,ctc-accept] [--concurrency 1,4,16,64]

Every mode decodes the same clips of the manifest's recordings, in the same order, so many at a time. All
engines are there from the beginning and take turns, round after round, so that whatever else the machine
does meets them alike; figures are medians over the rounds, and RTFx to off that of the rounds' ratios.
Loading is not in the figures, hearing the files neither. Steps of a clip are those that gave it tokens,
its prompt's included. Word error rates are those of ``rayscribe evaluate``,
over recordings that have a ``text``.

From the same runs comes F of ``speech.granite.draft_length``, the number of tokens whose verification costs as
much as the fixed part of a step: a run's time is taken to be so much a step, so much a token and so much a
second of audio, and the three are fitted. Prints a table and, last, a line of JSON.
"""

import argparse
import asyncio
import heapq
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines import manifest
from pipelines.evaluate import Evaluation, score
from speech.engines.base import ClipRequest, DecodingResult, Engine, EngineConfig, start_engine
from speech.engines.speculation import check_speculation
from speech.engines.vllm import VllmEngine
from speech.errors import RayscribeError
from speech.listener import Listener
from speech.models.checkpoint import family_of
from speech.recording import Options, Recording
from storage.filesystem import Storage


@dataclass(frozen=True)
class Run:
    """Clips decoded so many at a time."""

    concurrency: int
    seconds: float
    audio_s: float
    decodings: list[DecodingResult]

    @property
    def rtfx(self) -> float:
        return self.audio_s / self.seconds

    @property
    def steps(self) -> int:
        """Steps of the engine: those of its busiest place, each place taking the next clip when it is free."""
        places = [0] * self.concurrency
        for decoding in self.decodings:
            heapq.heapreplace(places, places[0] + steps_of(decoding))
        return max(places)

    @property
    def tokens(self) -> int:
        """Tokens that the model computed, but for the prompts'."""
        return sum(steps_of(each) + each.usage.draft_tokens for each in self.decodings)


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
    parser.add_argument("--times", type=int, default=1, help="that a run takes all clips of the manifest")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft-tokens", type=int, help="tokens of a draft verified at once, at most")
    parsed = parser.parse_args(arguments)
    levels = [int(level) for level in parsed.concurrency.split(",")]
    truths, found = clips_of(parsed.manifest, parsed.model)
    clips = found * parsed.times
    configs = [
        EngineConfig(
            model=parsed.model,
            speculation=mode,
            draft_tokens=parsed.draft_tokens,
            concurrent_clips=max(levels),
        )
        for mode in parsed.modes.split(",")
    ]
    runs = asyncio.run(_measure(configs, clips, levels, parsed.rounds))
    measured = [
        _level(config.speculation, runs[config.speculation, level], runs[configs[0].speculation, level], clips, truths)
        for level in levels
        for config in configs
    ]
    step_cost_tokens = fitted_step_cost_tokens([*itertools.chain(*runs.values())])
    _print(measured, len(clips), step_cost_tokens)
    print(json.dumps({"free_tokens": round(step_cost_tokens, 1), "levels": [asdict(level) for level in measured]}))


def clips_of(uri: str, model: str) -> tuple[dict[str, str], list[ClipRequest]]:
    """The truths by recording, and the clips of all recordings that any way of drafting is for."""
    family = family_of(model)
    listener, truths, clips = Listener(clip_s=family.clip_s), {}, []
    for _, row in manifest.read(uri, Storage()):
        try:
            recording = Recording.from_row(row, Options())
            family.check(recording.options)
            check_speculation("ctc-accept", recording.options)
            listened = listener.listen(recording)
        except RayscribeError:  # the samples hold bad rows on purpose
            continue
        if recording.text is not None:
            truths[recording.id] = recording.text
        clips += [
            ClipRequest(clip.samples, recording.options, f"{recording.id}/{number}")
            for number, clip in enumerate(listened.clips)
        ]
    return truths, clips


async def _measure(
    configs: list[EngineConfig], clips: list[ClipRequest], levels: list[int], rounds: int
) -> dict[tuple[str, int], list[Run]]:
    """The runs of each mode at each concurrency, a round each."""
    engines: dict[str, Engine] = {}
    runs: dict[tuple[str, int], list[Run]] = {}
    try:
        for config in configs:
            engine = engines[config.speculation] = start_engine(config, family_of(config.model))
            await decode_all(engine, clips[:4], 4)  # pays for what is set up once
        for level, _ in itertools.product(levels, range(rounds)):
            for mode, engine in engines.items():
                _forget(engine)
                runs.setdefault((mode, level), []).append(await decode_all(engine, clips, level))
        return runs
    finally:
        for engine in engines.values():
            engine.stop()


def _forget(engine: Engine) -> None:
    """Binds the drafter anew, so that no run knows the words or the acceptance of the one before."""
    if isinstance(engine, VllmEngine):
        engine._prepared = None


async def decode_all(engine: Engine, clips: list[ClipRequest], concurrency: int) -> Run:
    """Decodes clips, so many at a time."""
    places = asyncio.Semaphore(concurrency)

    async def decode(number: int, clip: ClipRequest) -> DecodingResult:
        async with places:
            return await engine.decode(replace(clip, id=f"{number}/{clip.id}"))

    start = time.perf_counter()
    decodings = await asyncio.gather(*(decode(number, clip) for number, clip in enumerate(clips)))
    return Run(concurrency, time.perf_counter() - start, sum(clip.seconds for clip in clips), decodings)


def steps_of(decoding: DecodingResult) -> int:
    """Steps of the engine that gave a clip tokens."""
    return decoding.usage.output_tokens - decoding.usage.accepted_draft_tokens


def fitted_step_cost_tokens(runs: Sequence[Run]) -> float:
    """Tokens that cost as much as the fixed part of a step, by least squares over all runs."""
    work = [(run.steps, run.tokens, run.audio_s) for run in runs]
    # Weighted by the time taken, so that a run of a second is fitted no worse than one of a minute.
    weights = np.array([1 / run.seconds for run in runs])
    (step, token, _), *_ = np.linalg.lstsq(np.array(work) * weights[:, None], np.ones(len(work)), rcond=None)
    return float(step / token) if token > 0 else float("inf")


def _level(mode: str, runs: list[Run], plain: list[Run], clips: list[ClipRequest], truths: dict[str, str]) -> Level:
    decodings = runs[0].decodings  # all rounds have the same texts, and the same drafts but for auto's
    steps = sum(map(steps_of, decodings))
    drafted = sum(each.usage.draft_tokens for each in decodings)
    same = [one.token_ids == other.token_ids for one, other in zip(decodings, plain[0].decodings, strict=True)]
    return Level(
        mode=mode,
        concurrency=runs[0].concurrency,
        steps_per_clip=steps / len(decodings),
        tokens_per_step=sum(each.usage.output_tokens for each in decodings) / steps,
        drafts_accepted=sum(each.usage.accepted_draft_tokens for each in decodings) / drafted if drafted else 0.0,
        rtfx=statistics.median(run.rtfx for run in runs),
        rtfx_to_off=statistics.median(run.rtfx / off.rtfx for run, off in zip(runs, plain, strict=True)),
        wer=_word_error_rate(clips, decodings, truths),
        same_as_off=statistics.mean(same),
    )


def _word_error_rate(clips: list[ClipRequest], decodings: list[DecodingResult], truths: dict[str, str]) -> float:
    """Over the recordings that have a truth, each once."""
    texts: dict[str, dict[str, str]] = {}
    for clip, decoding in zip(clips, decodings, strict=True):
        texts.setdefault(clip.id.rpartition("/")[0], {}).setdefault(clip.id, decoding.text)
    english = {clip.id.rpartition("/")[0] for clip in clips if clip.options.language == "en"}
    scores = [
        score(name, truths[name], " ".join(parts.values()), name in english)
        for name, parts in texts.items()
        if name in truths
    ]
    return Evaluation(scores, failed=0, rtfx=None).wer


def _print(levels: list[Level], clips: int, step_cost_tokens: float) -> None:
    table = Table(
        "at once", "mode", "steps a clip", "tokens a step", "accepted", "RTFx", "to off", "WER", "same as off",
        title=f"{clips} clips",
    )  # fmt: skip
    for level in levels:
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
    console = Console(width=110)
    console.print(table)
    console.print(f"the fixed part of a step costs as much as {step_cost_tokens:.0f} tokens")


if __name__ == "__main__":
    main()
