"""Speculative decoding: engine steps, tokens a step and RTFx with and without drafts, by concurrency.

    python -m bench.speculation [--model demo/model] [--manifest demo/samples/manifest.jsonl]
                                [--modes off,auto,ctc] [--concurrency 1,4,16,64]

Every mode decodes the same clips of the manifest's recordings, in the same order, at the same concurrency. All
engines are loaded at the start and take turns, round by round, so that other load on the machine affects all
alike; figures are medians over the rounds, and "RTFx to off" is the median of the rounds' ratios. Loading the
models and listening to the files are in no figure. The steps of a clip are those that gave it tokens, the prefill
included. Word error rates are those of ``rayscribe evaluate``, over recordings that have a ``text``.

From the same runs comes F of ``speech.granite.draft_length``, the number of tokens whose verification costs as
much as the fixed part of a step: a run's time is modelled as linear in steps, tokens and seconds of audio, and the
three coefficients are fitted. Prints a table and, last, a line of JSON.
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
from speech.engines.vllm import VllmEngine
from speech.errors import RayscribeError
from speech.granite.drafts import Drafts
from speech.listener import Listener
from speech.models.checkpoint import family_of
from speech.recording import Options, Recording
from storage.filesystem import Storage


@dataclass(frozen=True)
class Run:
    """Clips decoded at one concurrency."""

    concurrency: int
    seconds: float
    audio_s: float
    decodings: list[DecodingResult]

    @property
    def rtfx(self) -> float:
        return self.audio_s / self.seconds

    @property
    def steps(self) -> int:
        """Steps of the engine: those of its busiest slot, each slot taking the next clip when it is free."""
        slots = [0] * self.concurrency
        for decoding in self.decodings:
            heapq.heapreplace(slots, slots[0] + steps_of(decoding))
        return max(slots)

    @property
    def tokens(self) -> int:
        """Tokens that the model computed, without those of the prompts."""
        return sum(steps_of(each) + each.usage.draft_tokens for each in self.decodings)


@dataclass(frozen=True)
class Measurement:
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
    parser.add_argument("--modes", default="off,auto,ctc", help="off is the baseline and comes first")
    parser.add_argument("--concurrency", default="1,4,16,64")
    parser.add_argument("--times", type=int, default=1, help="passes over the manifest's clips in a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft-tokens", type=int, help="the most draft tokens verified in a step")
    parsed = parser.parse_args(arguments)
    levels = [int(level) for level in parsed.concurrency.split(",")]
    references, found = clips_of(parsed.manifest, parsed.model)
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
        _measurement(
            config.speculation, runs[config.speculation, level], runs[configs[0].speculation, level], clips, references
        )
        for level in levels
        for config in configs
    ]
    step_cost_tokens = fitted_step_cost_tokens([*itertools.chain(*runs.values())])
    _print(measured, len(clips), step_cost_tokens)
    print(json.dumps({"free_tokens": round(step_cost_tokens, 1), "levels": [asdict(level) for level in measured]}))


def clips_of(uri: str, model: str) -> tuple[dict[str, str], list[ClipRequest]]:
    """The references by recording, and the clips of all recordings that every mode can transcribe."""
    family = family_of(model)
    listener, references, clips = Listener(clip_s=family.clip_s), {}, []
    for _, row in manifest.read(uri, Storage()):
        try:
            recording = Recording.from_row(row, Options())
            family.check(recording.options)
            listened = listener.listen(recording)
        except RayscribeError:  # the samples contain bad rows on purpose
            continue
        if recording.text is not None:
            references[recording.id] = recording.text
        clips += [
            ClipRequest(clip.samples, recording.options, f"{recording.id}/{number}")
            for number, clip in enumerate(listened.clips)
        ]
    return references, clips


async def _measure(
    configs: list[EngineConfig], clips: list[ClipRequest], levels: list[int], rounds: int
) -> dict[tuple[str, int], list[Run]]:
    """The runs of each mode at each concurrency, a round each."""
    engines: dict[str, Engine] = {}
    runs: dict[tuple[str, int], list[Run]] = {}
    try:
        for config in configs:
            engine = engines[config.speculation] = start_engine(config, family_of(config.model))
            await decode_all(engine, clips[:4], 4)  # warm-up: one-time initialisation
        for level, _ in itertools.product(levels, range(rounds)):
            for config in configs:
                engine, mode = engines[config.speculation], config.speculation
                _reset_drafts(engine)
                runs.setdefault((mode, level), []).append(await decode_all(engine, clips, level))
        return runs
    finally:
        for engine in engines.values():
            engine.stop()


def _reset_drafts(engine: Engine) -> None:
    """Discards the spellings and the acceptance that an engine has learned in earlier runs."""
    if isinstance(engine, VllmEngine):
        engine._prepared = None
        engine._drafts = Drafts(engine._tokenizer)


async def decode_all(engine: Engine, clips: list[ClipRequest], concurrency: int) -> Run:
    """Decodes clips, at most ``concurrency`` at a time; ids become ``NUMBER/ID``."""
    slots = asyncio.Semaphore(concurrency)

    async def decode(number: int, clip: ClipRequest) -> DecodingResult:
        async with slots:
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


def _measurement(
    mode: str, runs: list[Run], plain: list[Run], clips: list[ClipRequest], references: dict[str, str]
) -> Measurement:
    decodings = runs[0].decodings  # all rounds have the same texts, and the same drafts but for auto's
    steps = sum(map(steps_of, decodings))
    drafted = sum(each.usage.draft_tokens for each in decodings)
    same = [one.token_ids == other.token_ids for one, other in zip(decodings, plain[0].decodings, strict=True)]
    return Measurement(
        mode=mode,
        concurrency=runs[0].concurrency,
        steps_per_clip=steps / len(decodings),
        tokens_per_step=sum(each.usage.output_tokens for each in decodings) / steps,
        drafts_accepted=sum(each.usage.accepted_draft_tokens for each in decodings) / drafted if drafted else 0.0,
        rtfx=statistics.median(run.rtfx for run in runs),
        rtfx_to_off=statistics.median(run.rtfx / off.rtfx for run, off in zip(runs, plain, strict=True)),
        wer=word_error_rate(clips, [each.text for each in decodings], references),
        same_as_off=statistics.mean(same),
    )


def word_error_rate(clips: Sequence[ClipRequest], decoded: Sequence[str], references: dict[str, str]) -> float:
    """Over the recordings that have a reference, each once."""
    texts: dict[str, dict[str, str]] = {}
    for clip, text in zip(clips, decoded, strict=True):
        texts.setdefault(clip.id.rpartition("/")[0], {}).setdefault(clip.id, text)
    english = {clip.id.rpartition("/")[0] for clip in clips if clip.options.language == "en"}
    scores = [
        score(name, references[name], " ".join(parts.values()), name in english)
        for name, parts in texts.items()
        if name in references
    ]
    return Evaluation(scores, failed=0, rtfx=None).wer


def _print(measurements: list[Measurement], clips: int, step_cost_tokens: float) -> None:
    table = Table(
        "at once", "mode", "steps a clip", "tokens a step", "accepted", "RTFx", "to off", "WER", "same as off",
        title=f"{clips} clips",
    )  # fmt: skip
    for each in measurements:
        table.add_row(
            str(each.concurrency),
            each.mode,
            f"{each.steps_per_clip:.1f}",
            f"{each.tokens_per_step:.2f}",
            f"{each.drafts_accepted:.0%}",
            f"{each.rtfx:.1f}",
            f"{each.rtfx_to_off:.2f}",
            f"{each.wer:.1%}",
            f"{each.same_as_off:.1%}",
        )
    console = Console(width=110)
    console.print(table)
    console.print(f"the fixed part of a step costs as much as {step_cost_tokens:.0f} tokens")


if __name__ == "__main__":
    main()
